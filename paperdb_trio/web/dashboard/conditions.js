/**
 * Filters as rows of conditions, and back.
 *
 * Law: no I/O and no elements. What rows cannot say (`not`, nesting) is for the raw text: `toConditions` is null then.
 */

export const OPERATORS = {
  eq: "is",
  ne: "is not",
  gt: ">",
  gte: "≥",
  lt: "<",
  lte: "≤",
  in: "is one of",
  nin: "is none of",
  contains: "contains",
  startsWith: "starts with",
  exists: "exists",
};
const LISTS = new Set(["in", "nin"]);

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** A typed text is the JSON that it is, else a string: `12` is a number, `"12"` and `Ada` are strings. */
export function valueOf(text, op) {
  if (op === "startsWith") return text;
  if (op === "exists") return text !== "false";
  const value = parsed(text);
  if (!LISTS.has(op)) return isObject(value) || Array.isArray(value) || value === undefined ? text : value;
  if (Array.isArray(value)) return value;
  return text.split(",").map((part) => valueOf(part.trim(), "eq"));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

export function textOf(value, op) {
  if (LISTS.has(op) || typeof value !== "string") return JSON.stringify(value);
  return op !== "startsWith" && parsed(value) !== undefined ? JSON.stringify(value) : value;
}

/** The kind of a typed text, for the person who types it. */
export function kindOf(text, op) {
  const value = valueOf(text, op);
  if (Array.isArray(value)) return `${value.length} values`;
  return value === null ? "null" : { string: "text", boolean: "true/false" }[typeof value] ?? typeof value;
}

/** `[{field, op, text}]` as a filter; `any`: one of them suffices. */
export function toFilter(conditions, any) {
  const parts = conditions.map(({ field, op, text }) => {
    const value = valueOf(text, op);
    return [field, op === "eq" ? value : { [op]: value }];
  });
  if (any && parts.length > 1) return { or: parts.map(([field, condition]) => ({ [field]: condition })) };
  const filter = {};
  const more = [];
  for (const [field, condition] of parts) {
    const before = Object.hasOwn(filter, field) ? filter[field] : undefined;
    if (before === undefined && !["or", "and", "not"].includes(field)) {
      Object.defineProperty(filter, field, { value: condition, enumerable: true, configurable: true, writable: true });
    } else if (isObject(before) && isObject(condition) && !Object.keys(condition).some((op) => op in before)) {
      Object.assign(before, condition);
    } else more.push({ [field]: condition });
  }
  return more.length ? { and: [filter, ...more] } : filter;
}

/** `{conditions, any}` of a filter; null if rows cannot say it. */
export function toConditions(filter) {
  const keys = Object.keys(filter);
  if (keys.length === 1 && keys[0] === "or" && Array.isArray(filter.or)) {
    const all = filter.or.map((part) => (isObject(part) ? rows(part) : null));
    return all.every((part) => part?.length === 1) ? { conditions: all.flat(), any: true } : null;
  }
  const conditions = rows(filter);
  return conditions && { conditions, any: false };
}

function rows(filter) {
  const found = [];
  for (const [field, condition] of Object.entries(filter)) {
    if (["or", "and", "not"].includes(field)) return null;
    if (Array.isArray(condition)) return null;
    for (const [op, value] of Object.entries(isObject(condition) ? condition : { eq: condition })) {
      const isList = Array.isArray(value);
      if (!(op in OPERATORS) || isObject(value) || isList !== LISTS.has(op)) return null;
      if (op === "startsWith" && typeof value !== "string") return null;
      found.push({ field, op, text: textOf(value, op) });
    }
  }
  return found;
}
