"use strict";
/* Says of a table or figure that is wider than its place that it goes on to the right, until it has been scrolled to its end. */

document.addEventListener("DOMContentLoaded", () => {
  for (const place of document.querySelectorAll(".pst-scrollable-table-container, .cell_output .output.text_html")) {
    const hint = document.createElement("p");
    hint.className = "scroll-hint";
    hint.setAttribute("aria-hidden", "true"); // whoever hears the table has all of it
    hint.textContent = "Goes on to the right: scroll sideways →";
    place.before(hint);
    const look = () => {
      hint.hidden = place.scrollWidth <= place.clientWidth + 1;
      place.classList.toggle("goes-on", place.scrollLeft + place.clientWidth < place.scrollWidth - 1);
    };
    place.addEventListener("scroll", look, { passive: true });
    const watch = new ResizeObserver(look);
    for (const part of [place, ...place.children]) watch.observe(part);
  }
});
