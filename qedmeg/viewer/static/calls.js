// Opens a call where it stands in the tree. Texts become text nodes and nothing else.
import { watchMathematics } from "./mathematics.js";

export function openCalls() {
  document.querySelectorAll("details[data-call]").forEach((details) => {
    details.addEventListener("toggle", () => {
      if (details.open && !details.dataset.loaded) load(details);
    });
  });
}

async function load(details) {
  details.dataset.loaded = "yes";
  const waiting = details.appendChild(element("p", "quiet", "reading"));
  try {
    const response = await fetch(details.dataset.call);
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    const { sections } = await response.json();
    waiting.replaceWith(...sections.map(shown));
    watchMathematics(details);
  } catch (error) {
    waiting.textContent = `not read: ${error.message}; close and open it to try again`;
    waiting.className = "warning";
    details.addEventListener("toggle", () => { waiting.remove(); delete details.dataset.loaded; }, { once: true });
  }
}

function shown({ title, paragraphs, more, label }) {
  const section = element("section", "said");
  section.append(element("h3", "", title));
  const prose = section.appendChild(element("div", "prose small"));
  prose.append(...paragraphs.map((text) => element("p", "tex", text)));
  if (more) {
    const cut = prose.appendChild(element("p", "cut", ""));
    const link = cut.appendChild(element("a", "", label));
    link.setAttribute("href", `${more}&part=2`);
  }
  return section;
}

function element(name, kind, text = "") {
  const made = document.createElement(name);
  made.className = kind;
  made.textContent = text;
  return made;
}
