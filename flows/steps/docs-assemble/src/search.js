// Shows the pages that hold every word that begins like a typed one. The index is fetched on the first key.
let index;
document.getElementById("search").addEventListener("input", async (event) => {
  index ??= await (await fetch("search-index.json")).json();
  const typed = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = typed.map((part) => new Set(
    Object.keys(index.words).filter((word) => word.startsWith(part)).flatMap((word) => index.words[word])));
  [...document.querySelectorAll("#pages li")].forEach((item, at) => {
    item.hidden = !found.every((pages) => pages.has(at));
  });
});
