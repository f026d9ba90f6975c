/** CSV as RFC 4180 has it. Law: no I/O and no elements. */

const QUOTED = /[",\r\n]|^\s|\s$/;

export const rowOf = (cells) => `${cells.map((cell) => (QUOTED.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell)).join(",")}\r\n`;

/** `{cells, line, read}` of each row of `{text, read}` pieces; `line` is where it begins. */
export async function* parseRows(pieces) {
  let [cells, cell, state, line, begins] = [[], "", "start", 1, 1];
  let read = 0;
  for await (const piece of pieces) {
    const { text } = piece;
    ({ read } = piece);
    for (const character of text.replace(/^\uFEFF/, "")) {
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

/** A row as a JSON document. Empty cells are missing fields. `typed`: a cell that is JSON is that value. */
export function toDocument(header, cells, typed) {
  const parts = [];
  for (const [at, cell] of cells.entries()) {
    if (cell === "" || !header[at]) continue;
    const isJson = typed && header[at] !== "_id" && isValue(cell);
    parts.push(`${JSON.stringify(header[at])}:${isJson ? cell : JSON.stringify(cell)}`);
  }
  return `{${parts.join(",")}}`;
}

function isValue(text) {
  if (!/^\s*[-\d[{tfn]/.test(text)) return false;
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}
