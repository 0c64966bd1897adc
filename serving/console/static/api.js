// The HTTP interface as the page calls it: keys, errors in words, streams.

const BASE = new URL("../v1/", import.meta.url); // the interface lies beside the page, behind the same prefix
const KEY = "recipe-ray.key";

/** An answer that is an error, or none at all (status 0); `message` is for a person. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** What every call is about. `minSnapshot`: the version of this page's own last write, so that it is seen. */
export const scope = { model: null, namespace: "", minSnapshot: null };

/** The API key: in this tab's session alone, nowhere that outlives it. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

let unauthorized = () => {};

/** Calls back with the ApiError whenever the interface answers 401. */
export function onUnauthorized(callback) {
  unauthorized = callback;
}

/** Remembers a write, so that later reads wait for it. */
export function wrote(snapshot) {
  scope.minSnapshot = Math.max(snapshot, scope.minSnapshot ?? 0);
}

/** Calls a route; `query` and `body` leave out what is null or empty. Throws ApiError, or AbortError when stopped. */
export async function call(method, path, { query = {}, body = null, signal = null } = {}) {
  const response = await send(method, path, { query, body, signal });
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(response.status, `The answer to ${method} ${path} cannot be read: ${error.message}`);
  }
}

/** Calls a route that answers with server-sent events; yields their JSON until [DONE]. */
export async function* stream(path, body, signal) {
  const response = await send("POST", path, { body, signal });
  let ended = false;
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(response.status, event.error.message ?? "The answer broke off.");
    yield event;
  }
  if (!ended) throw new ApiError(response.status, "The answer broke off before its end; ask again.");
}

/** The path of a fact by id, or null where an address cannot say it: browsers resolve "." and ".." themselves. */
export function factPath(id) {
  const path = `facts/${id.split("/").map(encodeURIComponent).join("/")}`;
  return new URL(path, BASE).pathname === BASE.pathname + path ? path : null;
}

async function send(method, path, { query = {}, body = null, signal = null }) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(filled(query))) url.searchParams.set(name, value);
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(url, { method, headers, body: body && JSON.stringify(filled(body)), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, `The server cannot be reached (${error.message}); is it running?`);
  }
  if (response.ok) return response;
  const error = new ApiError(response.status, await errorMessage(response));
  if (response.status === 401) unauthorized(error);
  throw error;
}

async function errorMessage(response) {
  const plain = `The server answered ${response.status} ${response.statusText}`.trim();
  try {
    return (await response.json()).error.message ?? plain;
  } catch {
    return plain; // a proxy's page, not the interface's words
  }
}

function filled(values) {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null && value !== ""));
}

async function* eventData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer = (buffer + value).replaceAll("\r\n", "\n");
      const events = buffer.split("\n\n");
      buffer = events.pop();
      for (const event of events) {
        const lines = event.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // leaving early tells the server to stop
  }
}
