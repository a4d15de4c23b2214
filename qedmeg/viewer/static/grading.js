// The sheet of grades: digits give points, the sum is shown, Ctrl+Enter saves.
export function startGrading() {
  const sheet = document.getElementById("sheet");
  if (!sheet) return;
  const scales = [...sheet.querySelectorAll("[data-scale]")];
  const total = sheet.querySelector("[data-total]");

  const chosen = (scale) => scale.querySelector("input:checked");
  const tell = () => {
    const points = scales.map(chosen).filter(Boolean).map((input) => Number(input.value));
    const sum = points.reduce((before, one) => before + one, 0);
    total.textContent = points.length === scales.length ? `${sum} of 7` : "";
  };
  sheet.addEventListener("change", tell);
  tell();

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      sheet.requestSubmit();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || !/^[0-9]$/.test(event.key)) return;
    if (event.target.matches("textarea, select, input:not([type=radio])")) return;
    const marked = scales.find((scale) => scale.contains(document.activeElement));
    const scale = marked ?? scales.find((one) => !chosen(one)) ?? scales[0];
    const input = scale.querySelector(`input[value="${event.key}"]`);
    if (!input) return;
    event.preventDefault();
    input.checked = true;
    const next = scales[scales.indexOf(scale) + 1];
    (next ? chosen(next) ?? next.querySelector("input") : input).focus();
    tell();
  });
}
