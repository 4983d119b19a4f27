// Browsers start no workers from files. A page that is opened from the disk searches in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.body.appendChild(document.createElement("iframe"));
      this.frame.hidden = true;
      const inside = this.frame.contentWindow;
      window.addEventListener("message", ({ source, data }) => {
        if (source === inside) {
          this.dispatchEvent(new MessageEvent("message", { data }));
        }
      });
      inside.document.open();
      inside.document.write(
        `<script>postMessage = (data) => parent.postMessage(data, "*")</script><script src="${url}"></script>`,
      );
      inside.document.close();
      this.loaded = new Promise((resolve) => inside.addEventListener("load", resolve)); // `open` removes listeners.
    }

    postMessage(data) {
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
