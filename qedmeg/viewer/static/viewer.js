// The entry: what every page does once it is there.
import { openCalls } from "./calls.js";
import { startGrading } from "./grading.js";
import { listenToKeys } from "./keys.js";
import { watchMathematics } from "./mathematics.js";

document.querySelectorAll(".scripted").forEach((element) => { element.hidden = false; });
document.querySelectorAll("[data-opens]").forEach((button) => {
  button.addEventListener("click", () => document.getElementById(button.dataset.opens).showModal());
});
// Fields that say nothing stay out of the address, which people keep and send.
document.querySelectorAll("form[method=get]").forEach((form) => {
  form.addEventListener("submit", () => {
    const empty = [...form.elements].filter((field) => field.name && field.value === "" && !field.disabled);
    empty.forEach((field) => { field.disabled = true; });
    setTimeout(() => empty.forEach((field) => { field.disabled = false; }));
  });
});
watchMathematics(document);
openCalls();
startGrading();
listenToKeys();
