"use strict";

document.addEventListener("DOMContentLoaded", () => {
  /* A table or figure that is wider than its place says that it goes on to the right, until it has been scrolled to its end. */
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

  /* Two names that the theme leaves out: of the arrows in the contents, and all that is written on the search button. */
  for (const arrow of document.querySelectorAll(".bd-sidenav details > summary")) {
    arrow.setAttribute("aria-label", `Pages under ${arrow.closest("li").querySelector("a").textContent.trim()}`);
  }
  document.querySelector(".search-button-field")?.removeAttribute("aria-label");
});
