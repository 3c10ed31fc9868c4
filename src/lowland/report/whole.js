// The page as a whole: boards are drawn when they are first seen, pictures are there once, and print opens all.
const boards = JSON.parse(document.getElementById("boards").textContent);
const drawIn = (part) => {
  for (const place of part.querySelectorAll(".board:not(.drawn)")) board(place, boards[place.dataset.board]);
};
for (const place of document.querySelectorAll(".board")) {
  const closed = place.closest("details:not([open])");
  if (closed) closed.addEventListener("toggle", () => drawIn(closed), { once: true });
  else board(place, boards[place.dataset.board]);
}
for (const copy of document.querySelectorAll("img[data-of]")) {
  copy.src = document.getElementById(copy.dataset.of).src;
}
if (window.matchMedia("(max-width: 71.99rem)").matches) document.querySelector(".contents").open = false;
const opened = [];
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    part.open = true;
    opened.push(part);
  }
});
window.addEventListener("afterprint", () => opened.splice(0).forEach((part) => { part.open = false; }));
