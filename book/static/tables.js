// Tables within `.sortable`: a click on a heading sorts, words in the field above choose rows.
function compare(a, b) {
  const numbers = [parseFloat(a), parseFloat(b)];
  if (!numbers.some(Number.isNaN)) return numbers[0] - numbers[1];
  if (!a || !b) return b.length - a.length; // what is empty comes last
  return a.localeCompare(b);
}

for (const table of document.querySelectorAll(".sortable table")) {
  const headings = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];

  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "words that a row must have";
  field.ariaLabel = "Words that a row must have";
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  table.before(field);

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    button.addEventListener("click", () => {
      const sign = heading.ariaSort === "ascending" ? -1 : 1;
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.ariaSort = sign > 0 ? "ascending" : "descending";
      const text = (row) => row.cells[column].textContent.trim();
      rows.sort((a, b) => sign * compare(text(a), text(b)));
      table.tBodies[0].append(...rows);
    });
    heading.append(button);
  });
}
