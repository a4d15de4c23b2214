// Sets the formulas of paragraphs as they come into view, one at a time, so that no page hangs however long it is.
const DELIMITERS = [
  { left: "$$", right: "$$", display: true },
  { left: "\\[", right: "\\]", display: true },
  { left: "\\(", right: "\\)", display: false },
  ...["equation", "equation*", "align", "align*", "gather", "gather*", "alignat", "CD"].map((name) => (
    { left: `\\begin{${name}}`, right: `\\end{${name}}`, display: true }
  )),
  { left: "$", right: "$", display: false },
];
const OPTIONS = {
  delimiters: DELIMITERS, trust: false, strict: false, throwOnError: false, maxExpand: 500, maxSize: 20,
  errorColor: "currentColor", errorCallback: () => {},
};
const MOST_FORMULAS = 400; // of a paragraph, which has at most some thousand characters
const MILLISECONDS = 12; // of work before the browser may do something else

// KaTeX writes a few attributes `style`, which the page's policy forbids; the same through the DOM is allowed.
const setAttribute = Element.prototype.setAttribute;
Element.prototype.setAttribute = function (name, value) {
  if (name === "style") this.style.cssText = value;
  else setAttribute.call(this, name, value);
};

const waiting = [];
const observer = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    observer.unobserve(target);
    if (waiting.push(target) === 1) setTimeout(work);
  }
}, { rootMargin: "400px" });

export function watchMathematics(root) {
  root.querySelectorAll(".tex").forEach((paragraph) => observer.observe(paragraph));
}

function work() {
  const end = performance.now() + MILLISECONDS;
  while (waiting.length && performance.now() < end) set(waiting.shift());
  if (waiting.length) setTimeout(work);
}

function set(paragraph) {
  const marks = paragraph.textContent.match(/\$|\\[([]|\\begin/g);
  if (!marks) return;
  if (marks.length > 2 * MOST_FORMULAS) {
    paragraph.title = "so many formulas in one paragraph are shown as they were written";
    return;
  }
  try {
    globalThis.renderMathInElement(paragraph, OPTIONS);
  } catch {
    paragraph.title = "a formula in here cannot be set"; // nested too deep, say: the text stays
  }
}
