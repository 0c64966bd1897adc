// The versions of the table: which one is served, what came before it, and the way back.

import { call, scope, wrote } from "./api.js";
import { $, button, confirmed, counted, element, reporting, time } from "./view.js";

const PAGE_SIZE = 10;
const MOST = 1000;

let limit = PAGE_SIZE;
let known = null; // the version that the page shows as current
let loading = null;
let onActivate = () => {};

/** Wires the section; `afterActivation` is called after the content of another version was made current. */
export function setUpSnapshots(afterActivation) {
  onActivate = afterActivation;
  $("refresh-snapshots").addEventListener("click", () => void showSnapshots());
  $("more-snapshots").addEventListener("click", async () => {
    const shown = $("snapshot-list").children.length;
    limit = Math.min(limit * 2, MOST);
    await showSnapshots();
    $("snapshot-list").children[shown]?.focus();
  });
}

/** Forgets what was shown, as another model's. */
export function resetSnapshots() {
  limit = PAGE_SIZE;
  known = null;
}

/** Shows anew where an answer came from a version that is not known yet. */
export function sawSnapshot(version) {
  if (known !== null && version > known) void showSnapshots();
}

/** Reads and shows the current version and those before it. */
export function showSnapshots() {
  loading?.abort();
  loading = new AbortController();
  const { signal } = loading;
  return reporting($("snapshots-error"), async () => {
    const query = { model: scope.model, min_snapshot: scope.minSnapshot };
    const [current, { snapshots }] = await Promise.all([
      call("GET", "snapshots/current", { query, signal }),
      call("GET", "snapshots", { query: { ...query, limit }, signal }),
    ]);
    showCurrent(current);
    $("snapshot-list").replaceChildren(...snapshots.map((snapshot) => row(snapshot, current)));
    $("more-snapshots").hidden = snapshots.length < limit || limit === MOST;
  });
}

function showCurrent(current) {
  known = current.snapshot;
  const namespaces = Object.keys(current.num_facts).sort();
  const numFacts = Object.values(current.num_facts).reduce((sum, num) => sum + num, 0);
  const told = `${counted(numFacts, "fact")} in ${counted(namespaces.length, "namespace")}`;
  $("status").textContent = `${scope.model}: snapshot ${current.snapshot}, ${told}`;
  const numBytes = current.index_bytes; // null for a key that does not see all namespaces, as are the counts below
  const size = numBytes === null ? "" : `, ${(numBytes / 1e6).toFixed(1)} MB of index`;
  const closed = current.writable ? "" : " This version is pinned: facts cannot be changed here.";
  $("current-snapshot").textContent = `Version ${current.snapshot} is served: ${told}${size}.${closed}`;
  $("namespaces").replaceChildren(...namespaces.map((namespace) => element("option", { value: namespace })));
  $("add-form").hidden = !current.writable;
  document.body.classList.toggle("pinned", !current.writable); // hides each fact's delete button
}

function row({ version, committed_at: committedAt, operation, counts }, current) {
  const item = element("li", { tabindex: "-1" });
  const told = Object.entries(counts ?? {}).map(([name, count]) => `${name.replaceAll("_", " ")} ${count.toLocaleString()}`);
  const serves = version === current.snapshot;
  item.append(
    element(
      "p",
      {},
      element("strong", { text: `Version ${version}` }),
      ` ${operation}, `,
      time(committedAt),
      told.length ? ` (${told.join(", ")})` : "",
    ),
  );
  if (serves) {
    item.setAttribute("aria-current", "true");
    item.append(element("p", { className: "fired", text: "Current" }));
  } else if (current.writable && version < current.snapshot) {
    item.append(button("Make current", `Make version ${version} current`, () => void activate(version)));
  }
  return item;
}

async function activate(version) {
  const text =
    `The facts become what they were in version ${version}, for everybody who asks this model. ` +
    "Later versions stay in the table, so this can be undone.";
  if (!(await confirmed(`Make version ${version} current?`, text, "Make current"))) return;
  await reporting($("snapshots-error"), async () => {
    const path = `snapshots/${version}/activate`;
    const activated = await call("POST", path, { query: { model: scope.model } });
    const current = activated.snapshot ?? activated.version;
    wrote(current);
    await Promise.all([showSnapshots(), onActivate()]);
    $("snapshots-status").textContent = `Version ${current} is served now, with the facts of version ${version}.`;
    $("snapshots").focus();
  });
}
