/**
 * JSON as text: laid out, taken apart and compared, without becoming numbers.
 *
 * Law: no I/O. A number of the server's may not fit into one of JavaScript's (9007199254740993): what is edited, exported
 * or imported stays the text that it was. All texts but those for `problem` are JSON.
 */

const STRUCTURE = /["{}[\]]/g;
const SPACE = /\s*/y;
const ATOM = /[^\s,\]}]*/y;

function sticky(pattern, text, at) {
  pattern.lastIndex = at;
  pattern.exec(text);
  return pattern.lastIndex;
}

const space = (text, at) => sticky(SPACE, text, at);

/** Behind the string that begins at `at`. */
function endOfString(text, at) {
  for (let end = text.indexOf('"', at + 1); ; end = text.indexOf('"', end + 1)) {
    let slashes = end;
    while (text[slashes - 1] === "\\") slashes -= 1;
    if ((end - slashes) % 2 === 0) return end + 1;
  }
}

/** Behind the value that begins at `at`. */
function endOf(text, at) {
  if (text[at] === '"') return endOfString(text, at);
  if (text[at] !== "{" && text[at] !== "[") return sticky(ATOM, text, at);
  let depth = 0;
  STRUCTURE.lastIndex = at;
  for (;;) {
    const [character] = STRUCTURE.exec(text);
    if (character === '"') STRUCTURE.lastIndex = endOfString(text, STRUCTURE.lastIndex - 1);
    else if ((depth += character === "{" || character === "[" ? 1 : -1) === 0) return STRUCTURE.lastIndex;
  }
}

/** The members of an object: `[{name, text}]`. */
export function members(text) {
  const found = [];
  let at = space(text, text.indexOf("{") + 1);
  while (text[at] === '"') {
    const colon = endOfString(text, at);
    const name = JSON.parse(text.slice(at, colon));
    const begin = space(text, space(text, colon) + 1);
    const end = endOf(text, begin);
    found.push({ name, text: text.slice(begin, end) });
    at = space(text, space(text, end) + 1);
  }
  return found;
}

/** The elements of an array, each as text. */
export function elements(text) {
  const found = [];
  let at = space(text, text.indexOf("[") + 1);
  while (at < text.length && text[at] !== "]") {
    const end = endOf(text, at);
    found.push(text.slice(at, end));
    at = space(text, end);
    if (text[at] === ",") at = space(text, at + 1);
  }
  return found;
}

/** The documents of a page of a find, each as text. */
export const documentsOf = (text) => elements(members(text).find(({ name }) => name === "documents").text);

export function object(parts) {
  return `{${parts.map(({ name, text }) => `${JSON.stringify(name)}:${text}`).join(",")}}`;
}

/** The same JSON on lines, indented by two spaces. */
export function pretty(text) {
  const parts = [];
  let depth = 0;
  const line = () => parts.push("\n", "  ".repeat(depth));
  for (let at = space(text, 0); at < text.length; at = space(text, at)) {
    const character = text[at];
    if (character === "{" || character === "[") {
      const next = space(text, at + 1);
      if (text[next] === "}" || text[next] === "]") {
        parts.push(character, text[next]);
        at = next + 1;
        continue;
      }
      parts.push(character);
      depth += 1;
      line();
      at += 1;
    } else if (character === "}" || character === "]") {
      depth -= 1;
      line();
      parts.push(character);
      at += 1;
    } else if (character === ",") {
      parts.push(character);
      line();
      at += 1;
    } else if (character === ":") {
      parts.push(": ");
      at += 1;
    } else {
      const end = endOf(text, at);
      parts.push(text.slice(at, end));
      at = end;
    }
  }
  return parts.join("");
}

/** Fields that the server sets. */
const OWN = new Set(["_id", "createdAt", "updatedAt"]);

/** A document's own fields, laid out, for an editor. */
export function editable(text) {
  return pretty(object(members(text).filter(({ name }) => !OWN.has(name))));
}

/** What is wrong with a text that is to be a JSON object: `{message, at}`; null if nothing is. */
export function problem(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    const at = /position (\d+)/.exec(error.message)?.[1];
    return { message: error.message, at: at === undefined ? null : Number(at) };
  }
  if (value !== null && typeof value === "object" && !Array.isArray(value)) return null;
  return { message: "It must be a JSON object: {…}", at: null };
}

/** Lines times lines above which two texts are not compared line by line. */
const MAX_WORK = 4_000_000;

/** The lines of two texts: `[{sign: " " | "-" | "+", text}]`. */
export function difference(before, after) {
  const [old, young] = [before, after].map((text) => (text === "" ? [] : text.split("\n")));
  let head = 0;
  while (head < old.length && head < young.length && old[head] === young[head]) head += 1;
  let tail = 0;
  const most = Math.min(old.length, young.length) - head;
  while (tail < most && old[old.length - 1 - tail] === young[young.length - 1 - tail]) tail += 1;
  const same = (text) => ({ sign: " ", text });
  const middle = between(old.slice(head, old.length - tail), young.slice(head, young.length - tail));
  return [...old.slice(0, head).map(same), ...middle, ...old.slice(old.length - tail).map(same)];
}

/** By the longest common subsequence. */
function between(old, young) {
  const out = (text) => ({ sign: "-", text });
  const into = (text) => ({ sign: "+", text });
  if (old.length * young.length > MAX_WORK) return [...old.map(out), ...young.map(into)];
  const width = young.length + 1;
  const common = new Uint32Array((old.length + 1) * width);
  for (let a = old.length - 1; a >= 0; a -= 1) {
    for (let b = young.length - 1; b >= 0; b -= 1) {
      const [right, below] = [common[a * width + b + 1], common[(a + 1) * width + b]];
      common[a * width + b] = old[a] === young[b] ? common[(a + 1) * width + b + 1] + 1 : Math.max(right, below);
    }
  }
  const lines = [];
  let [a, b] = [0, 0];
  while (a < old.length || b < young.length) {
    if (a < old.length && b < young.length && old[a] === young[b]) {
      lines.push({ sign: " ", text: old[a] });
      [a, b] = [a + 1, b + 1];
    } else if (b === young.length || (a < old.length && common[(a + 1) * width + b] >= common[a * width + b + 1])) {
      lines.push(out(old[a]));
      a += 1;
    } else {
      lines.push(into(young[b]));
      b += 1;
    }
  }
  return lines;
}
