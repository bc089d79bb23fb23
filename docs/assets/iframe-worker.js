// Makes the search work where the pages are opened from the file system: browsers start no worker there.
// The theme's search worker runs in a hidden frame instead. With a server this file does nothing.
"use strict";
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const frame = Object.assign(document.createElement("iframe"), { hidden: true });
      document.body.append(frame);
      this.inner = frame.contentWindow;
      this.waiting = [];
      const page = frame.contentDocument;
      page.open();
      this.inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      page.write("<body></body>");
      page.close();
      const script = Object.assign(page.createElement("script"), { src: address });
      script.onload = () => {
        const waiting = this.waiting;
        this.waiting = null;
        waiting.forEach((data) => this.postMessage(data));
      };
      page.body.append(script);
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.inner.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
