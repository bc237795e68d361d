// What the parts of the page share: the key, requests to the service, small DOM helpers.

const KEY = "vim-embed-key";
const keyWanted = new EventTarget();

export const byId = (id) => document.getElementById(id);
export const getKey = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));
export const onKeyWanted = (listener) => keyWanted.addEventListener("wanted", listener);

/** A refusal or failure, in the service's own words where it answered. */
export class Failure extends Error {
  constructor(code, message, requestId) {
    super(message);
    this.code = code;
    this.requestId = requestId;
  }
}

/** fetch below this page's address, with the key. Throws Failure; asks for a key where one is needed. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (getKey()) headers.Authorization = `Bearer ${getKey()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("unreachable", "The service does not answer. It may be restarting.");
  }
  if (answer.ok) return answer;
  const failure = await failureOf(answer);
  if (failure.code === "unauthorized") keyWanted.dispatchEvent(new Event("wanted"));
  throw failure;
}

async function failureOf(answer) {
  try {
    const { code, message, request_id: id } = (await answer.json()).error;
    return new Failure(code, message, id);
  } catch {
    return new Failure(`HTTP ${answer.status}`, "The answer is none of this service's: is a proxy in between?");
  }
}

/** An element with text and attributes; text is never read as HTML. */
export function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** Fills a <dl> with [name, value] pairs, leaving out those without a value. */
export function fillPairs(list, pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  list.replaceChildren(...shown.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

export function setText(id, text) {
  const place = byId(id);
  if (place.textContent !== text) place.textContent = text;
}

export const number = (value, digits = 1) =>
  value === null ? "–" : value.toLocaleString("en", { maximumFractionDigits: value < 100 ? digits : 0 });
