// A tab has a number, kept over a reload, by which the server knows what it showed. The websocket is where the page came
// from, whatever port or path that was. textual.js measures the font as it draws: it waits until that is there.
const draw = window.onload;
window.onload = async (event) => {
  const drawn = Array.from(crypto.getRandomValues(new Uint8Array(16)));
  sessionStorage.tab ??= drawn.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const address = new URL(`ws/${sessionStorage.tab}`, location.origin + location.pathname);
  address.protocol = address.protocol.replace("http", "ws");
  document.querySelector("#terminal").dataset.sessionWebsocketUrl = address.href;
  document.querySelector("#over button").onclick = () => location.reload();
  await document.fonts.load('15px "Roboto Mono"');
  draw(event);
  document.querySelector(".xterm-helper-textarea").focus();
};
