// The page: who asks (key), about what (model, namespace), and the sections.

import { call, key, onUnauthorized, scope } from "./api.js";
import { setUpAsk } from "./ask.js";
import { setUpFacts, showFacts } from "./facts.js";
import { resetSnapshots, sawSnapshot, setUpSnapshots, showSnapshots } from "./snapshots.js";
import { $, element, reporting } from "./view.js";

function showKeyForm() {
  $("key-form").hidden = false;
  $("forget-key").hidden = key.get() === null;
}

async function connect() {
  if (key.get()) showKeyForm();
  $("status").textContent = "Connecting …";
  const connected = await reporting($("key-error"), async () => {
    const { data } = await call("GET", "models");
    $("model").replaceChildren(...data.map(({ id }) => element("option", { value: id, text: id })));
    scope.model = data.some(({ id }) => id === scope.model) ? scope.model : (data[0]?.id ?? null);
    $("model").value = scope.model;
    return true;
  });
  if (connected) await showAll();
  else $("status").textContent = $("key-error").textContent;
}

function showAll() {
  return Promise.all([showSnapshots(), showFacts()]);
}

onUnauthorized((error) => {
  const first = $("key-form").hidden;
  showKeyForm();
  $("key-error").textContent = key.get() ? error.message : "This server asks for an API key.";
  if (first) $("key").focus();
});

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    $("key-error").textContent = given ? "A key holds no spaces and only ASCII characters." : "Give a key.";
    return;
  }
  $("key").value = "";
  key.set(given);
  void connect();
});
$("forget-key").addEventListener("click", () => {
  key.forget();
  $("key").focus();
  void connect();
});
$("scope-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("model").value !== scope.model) {
    scope.minSnapshot = null; // the other model's table has versions of its own
    resetSnapshots();
  }
  scope.model = $("model").value;
  scope.namespace = $("namespace").value.trim();
  void showAll();
});

setUpAsk(sawSnapshot);
setUpFacts(() => void showSnapshots());
setUpSnapshots(showFacts);
void connect();
