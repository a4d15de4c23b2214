// Keys: a link or field says by `data-key` which one leads to it; j and k walk through the items of a list.
export function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.target.matches("textarea, select, input:not([type=checkbox], [type=radio])")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (act(event.key)) event.preventDefault();
  });
}

function act(key) {
  if (key === "?") {
    document.getElementById("keys").showModal();
    return true;
  }
  if (/^[0-9]$/.test(key)) return false;
  const target = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (target) return go(target);
  if (key === "j" || key === "k") return walk(key === "j" ? 1 : -1);
  return false;
}

function go(target) {
  if (!target.matches("input")) {
    target.click();
    return true;
  }
  const folded = target.closest("details");
  if (folded) folded.open = true;
  target.focus();
  target.select();
  return true;
}

function walk(by) {
  const items = [...document.querySelectorAll("[data-item]")];
  if (!items.length) return false;
  const at = items.findIndex((item) => item.contains(document.activeElement));
  const next = items[at < 0 ? (by > 0 ? 0 : items.length - 1) : Math.min(Math.max(at + by, 0), items.length - 1)];
  const target = next.matches("tr") ? next.querySelector("a") : next;
  target.focus();
  next.scrollIntoView({ block: next.matches("tr") ? "nearest" : "start" });
  return true;
}
