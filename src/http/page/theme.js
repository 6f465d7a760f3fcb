// Before the first paint, so that nobody who chose dark sees a white flash. A classic script: a
// module would wait for the document.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("event-persister.theme");
  } catch {
    // Storage may be forbidden; the system's choice holds then.
  }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
