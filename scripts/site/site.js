// What scrolls sideways can be reached by keyboard. The theme wraps tables after it has loaded.
const content = document.querySelector(".md-content");
const reach = () => {
  for (const region of content.querySelectorAll(".md-typeset__scrollwrap, pre > code"))
    if (region.scrollWidth > region.clientWidth) region.tabIndex = 0;
    else region.removeAttribute("tabindex");
};
new ResizeObserver(reach).observe(content);
new MutationObserver(reach).observe(content, { childList: true, subtree: true });
