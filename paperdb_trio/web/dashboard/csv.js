/**
 * CSV as RFC 4180 has it, and documents in it.
 *
 * Law: no I/O and no elements. What is written is read again as it was. No cell is a formula to a spreadsheet: others write the
 * documents that an administrator opens there.
 */

const QUOTED = /[",;\r\n]|^\s|\s$/;
/** Where a spreadsheet may see a formula: at the beginning, or after what some of them split cells at. */
const FORMULA = /(^|;)\s*[=+\-@\uFF1D\uFF0B\uFF0D\uFF20]/;

/** What a cell holds of a value that is JSON text. Undefined is an empty cell: there is no value. */
export function cellOf(text) {
  if (text === undefined) return "";
  if (text.startsWith('"')) return textCell(JSON.parse(text));
  return /^[[{]/.test(text) && FORMULA.test(text) ? unsplit(text) : text;
}

/** A text as it is; as a JSON string where it would be read as something else. */
export function textCell(text) {
  if (text !== "" && !FORMULA.test(text) && !isValue(text)) return text;
  return unsplit(JSON.stringify(text));
}

const unsplit = (json) => json.replaceAll(";", "\\u003b");

export const rowOf = (cells) => `${cells.map((cell) => (QUOTED.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell)).join(",")}\r\n`;

/** `{cells, line, read}` of each row of `{text, read}` pieces; `line` is where it begins. */
export async function* parseRows(pieces) {
  let [cells, cell, state, line, begins] = [[], "", "start", 1, 1];
  let read = 0;
  for await (const piece of pieces) {
    const { text } = piece;
    ({ read } = piece);
    for (const character of text) {
      if (character === "\n") line += 1;
      if (state === "quoted") {
        if (character === '"') state = "quote";
        else cell += character;
      } else if (character === '"' && state === "quote") {
        cell += character;
        state = "quoted";
      } else if (character === '"' && state === "start") state = "quoted";
      else if (character === ",") {
        cells.push(cell);
        [cell, state] = ["", "start"];
      } else if (character === "\n") {
        cells.push(cell);
        if (cells.length > 1 || cell !== "") yield { cells, line: begins, read };
        [cells, cell, state, begins] = [[], "", "start", line];
      } else if (character !== "\r") {
        cell += character;
        state = "plain";
      }
    }
  }
  cells.push(cell);
  if (cells.length > 1 || cell !== "") yield { cells, line: begins, read };
}

/** The names in the first row; null for a column without one. `typed`: see `toDocument`. */
export const headerOf = (cells, typed) =>
  cells.map((cell) => (cell === "" ? null : typed && isText(cell) ? JSON.parse(cell) : cell));

/** A row as a JSON document. Empty cells are missing fields. `typed`: a cell that is JSON is that value. */
export function toDocument(header, cells, typed) {
  const parts = [];
  for (const [at, cell] of cells.entries()) {
    const name = header[at];
    if (cell === "" || name === null) continue;
    const isJson = typed && (name === "_id" ? isText(cell) : isValue(cell));
    parts.push(`${JSON.stringify(name)}:${isJson ? cell : JSON.stringify(cell)}`);
  }
  return `{${parts.join(",")}}`;
}

const isText = (cell) => cell.startsWith('"') && isValue(cell);

function isValue(text) {
  if (!/^\s*[-\d[{tfn"]/.test(text)) return false;
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}
