// Small parts of the page. Text reaches the document as text alone, never as markup.

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/** A new element with attributes or properties, and children that are elements or texts. */
export function element(tag, { text = null, className = "", ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A button of the keyboard's and the screen reader's kind; `label` says what it is about. */
export function button(text, label, onClick, className = "") {
  const made = element("button", { text, className, type: "button", "aria-label": label });
  made.addEventListener("click", onClick);
  return made;
}

/** A list of terms and what they are; terms without a value are left out. */
export function terms(pairs) {
  const list = element("dl");
  for (const [term, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(element("div", {}, element("dt", { text: term }), element("dd", {}, value)));
  }
  return list;
}

/** A point in time in the reader's own words. */
export function time(text) {
  return element("time", { datetime: text, text: new Date(text).toLocaleString() });
}

/** A score as a person reads it. */
export function number(value) {
  return value.toFixed(3).replace("-", "−");
}

/** "1 fact", "2 facts". */
export function counted(count, noun) {
  return `${count.toLocaleString()} ${noun}${count === 1 ? "" : "s"}`;
}

/** A bar whose middle is the sentinel's score: to the right what exceeds it, to the left what falls short of it. */
export function marginBar(score, sentinel) {
  const margin = score - sentinel;
  const span = Math.max(Math.abs(score), Math.abs(sentinel), Number.MIN_VALUE);
  const half = Math.min(Math.abs(margin) / span, 1) * 50;
  const fill = element("span", { className: margin > 0 ? "fill above" : "fill below" });
  fill.style.width = `${half}%`;
  fill.style.left = `${margin > 0 ? 50 : 50 - half}%`;
  const side = margin > 0 ? "above" : "below";
  const label = `Margin ${number(Math.abs(margin))} ${margin === 0 ? "at" : side} the sentinel`;
  return element("div", { className: "margin", role: "img", "aria-label": label }, fill);
}

/** Asks in a dialog; true if the person says yes. The focus returns to where it was. */
export function confirmed(heading, text, yes) {
  const dialog = $("confirm");
  $("confirm-heading").textContent = heading;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

$("confirm-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("confirm").close("yes");
});
$("confirm-no").addEventListener("click", () => $("confirm").close(""));

/** Runs what a person started and says in `place` what went wrong; a missing key is said by its own form. */
export async function reporting(place, action) {
  place.textContent = "";
  try {
    return await action();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (error.status === undefined) console.error(error);
    if (error.status !== 401) place.textContent = error.message;
    return undefined;
  }
}
