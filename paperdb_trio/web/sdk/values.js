/**
 * Documents as the server compares them: paths, order, filters.
 *
 * Law: no state and no I/O. The semantics are those of docs/rest.md (filters, pages); a filter that the server would
 * refuse matches nothing here. Integers beyond 2 ** 53 are not exact in JavaScript.
 */

/** The value at a dotted path, which never leads through an array; undefined if there is none. */
export function valueAt(document, path) {
  let value = document;
  for (const name of path.split(".")) {
    if (!isObject(value) || !Object.hasOwn(value, name)) return undefined;
    value = value[name];
  }
  return value;
}

export const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** UTF-16 has the characters from U+E000 on above all others; by code point, surrogate pairs are. */
const weight = (unit) => (unit >= 0xe000 ? unit - 0x800 : unit >= 0xd800 ? unit + 0x2000 : unit);

function compareText(one, other) {
  const length = Math.min(one.length, other.length);
  for (let at = 0; at < length; at += 1) {
    const a = one.charCodeAt(at);
    const b = other.charCodeAt(at);
    if (a !== b) return weight(a) - weight(b);
  }
  return one.length - other.length;
}

/** Null and missing, then numbers (false is 0, true is 1), then text (an array or object is its JSON). */
function sortable(value) {
  if (value == null) return [0, 0];
  if (typeof value === "number" || typeof value === "boolean") return [1, Number(value)];
  return [2, typeof value === "string" ? value : JSON.stringify(value)];
}

export function compareValues(one, other) {
  const [kind, a] = sortable(one);
  const [otherKind, b] = sortable(other);
  if (kind !== otherKind) return kind - otherKind;
  return kind === 2 ? compareText(a, b) : a - b;
}

/** A `sort` as `{fields: [{path, sign}], sign}`; the last sign is that of insertion order. */
export function parseSort(sort) {
  const names = String(sort ?? "").split(",").map((name) => name.trim()).filter(Boolean);
  const sign = names.at(-1) === "-" ? (names.pop(), -1) : 1;
  const fields = names.map((name) => ({ path: name.replace(/^[-+]/, ""), sign: name.startsWith("-") ? -1 : 1 }));
  return { fields, sign };
}

/**
 * A comparison of documents by a parsed sort. Equal ones come in the order of insertion, which they do not tell: `createdAt`
 * of two that are inserted at once may be the other way round.
 */
export function comparison({ fields }) {
  return (one, other) => {
    for (const { path, sign: own } of fields) {
      const order = compareValues(valueAt(one, path), valueAt(other, path));
      if (order !== 0) return own * order;
    }
    return 0;
  };
}

// --- filters -------------------------------------------------------------------------------------

const equal = (value, operand) => (operand === null ? value == null : value === operand);

const ordered = (holds) => (value, operand) =>
  typeof value === typeof operand && ["number", "string"].includes(typeof operand) && holds(compareValues(value, operand));

const OPERATORS = {
  eq: equal,
  ne: (value, operand) => !equal(value, operand),
  gt: ordered((order) => order > 0),
  gte: ordered((order) => order >= 0),
  lt: ordered((order) => order < 0),
  lte: ordered((order) => order <= 0),
  in: (value, operand) => operand.some((one) => equal(value, one)),
  nin: (value, operand) => !operand.some((one) => equal(value, one)),
  contains: (value, operand) =>
    Array.isArray(value)
      ? value.some((one) => equal(one, operand))
      : typeof value === "string" && typeof operand === "string" && value.includes(operand),
  startsWith: (value, operand) => typeof value === "string" && value.startsWith(operand),
  exists: (value, operand) => (value !== undefined) === operand,
};

/** Whether a document matches a filter. */
export function matches(document, filter = {}) {
  return Object.entries(filter).every(([name, condition]) => {
    if (condition === undefined) return true; // JSON leaves it out
    if (name === "or" && Array.isArray(condition)) return condition.some((part) => matches(document, part));
    if (name === "and" && Array.isArray(condition)) return condition.every((part) => matches(document, part));
    if (name === "not") return !matches(document, condition);
    const value = valueAt(document, name);
    if (!isObject(condition)) return equal(value, condition);
    return Object.entries(condition).every(([op, operand]) => operand === undefined || (OPERATORS[op]?.(value, operand) ?? false));
  });
}

/** The paths that a filter names. */
export function pathsOf(filter = {}) {
  return Object.entries(filter).flatMap(([name, condition]) => {
    if (["or", "and"].includes(name) && Array.isArray(condition)) return condition.flatMap(pathsOf);
    return name === "not" ? pathsOf(condition) : [name];
  });
}

/** Only these fields of a document, and `_id`. */
export function project(document, paths) {
  const shown = {};
  for (const path of ["_id", ...paths]) {
    const value = valueAt(document, path);
    if (value === undefined) continue;
    const names = path.split(".");
    const last = names.pop();
    let at = shown;
    for (const name of names) at = at[name] = isObject(at[name]) ? { ...at[name] } : {};
    at[last] = value;
  }
  return shown;
}
