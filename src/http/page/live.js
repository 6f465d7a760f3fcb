// Events as they are committed, by Prefect's own protocol: subprotocol, auth message, filter. The
// cookie has signed in already, so the token stays empty.

/** Events a second: more run past a reader, and would hold up those who write. */
const AT_MOST = 250;

/**
 * Follows until it is closed, and comes back by itself.
 * @param {object} filter
 * @param {{event: (event: object) => void, missed: (count: number) => void, state: (isOpen: boolean) => void}} told
 * @returns {() => void} closes
 */
export function follow(filter, told) {
  const address = new URL("api/events/out", location.href);
  address.protocol = address.protocol.replace("http", "ws");
  let socket = null;
  let timer = 0;
  let failures = 0;
  let closed = false;

  function open() {
    socket = new WebSocket(address, ["prefect"]);
    socket.onopen = () => socket.send(JSON.stringify({ type: "auth", token: null }));
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "event") told.event(message.event);
      else if (message.type === "missed") told.missed(message.count);
      else if (message.type === "auth_success") {
        failures = 0;
        socket.send(JSON.stringify({ type: "filter", filter, backfill: false, missed: true, at_most: AT_MOST }));
        told.state(true);
      }
    };
    socket.onclose = () => {
      if (closed) return;
      told.state(false);
      // A little chance, so that all pages do not come back at the same moment.
      const wait = Math.min(500 * 2 ** failures, 10000) * (0.75 + Math.random() / 2);
      failures += 1;
      timer = setTimeout(open, wait);
    };
  }

  open();
  return () => {
    closed = true;
    clearTimeout(timer);
    socket.close();
  };
}
