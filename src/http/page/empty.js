// A database without an event explains itself: the line that makes the first one, for the address
// that this page was opened at.

import { h, copy } from "./dom.js";

function line(hasAuth) {
  const auth = hasAuth ? " -u user:password" : "";
  const address = new URL("api/events", location.href);
  address.hash = "";
  return `curl -i ${address.href}${auth} -H 'content-type: application/json' -d '[{
  "id": "'"$(cat /proc/sys/kernel/random/uuid)"'",
  "occurred": "'"$(date -u +%Y-%m-%dT%H:%M:%SZ)"'",
  "event": "order.placed",
  "resource": {"prefect.resource.id": "order.17", "customer": "Ada"},
  "related": [{"prefect.resource.id": "shop.3", "prefect.resource.role": "shop"}],
  "payload": {"items": 2}
}]'`;
}

export function empty({ hasAuth, hasStream }) {
  const text = line(hasAuth);
  return h("div.empty", {}, h("h2", {}, "No event yet"),
    h("p", {}, hasStream ? "Events that are published to the stream appear here by themselves. To see one now, send it from a terminal:" : "Send one, from a terminal, and it appears here:"),
    h("div.snippet", {}, h("pre", { tabindex: 0, role: "region", "aria-label": "Command" }, h("code", {}, text))),
    h("div.actions", {}, h("button.primary", { type: "button", onclick: () => copy(text, "Command") }, "Copy"),
      h("p.soft", {}, "The answer, 204 No Content, means that it is in the database.")));
}
