// A whole site beside the browser: the program `console-site`, told what to do line by line.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

const ANSWER_LIMIT_MS = 60_000;

export class Site {
  static async start(program) {
    const site = new Site();
    site.process = spawn(program, { stdio: ["pipe", "pipe", "inherit"] });
    site.lines = createInterface({ input: site.process.stdout })[Symbol.asyncIterator]();
    site.facts = await site.answer("its start");
    return site;
  }

  async answer(what) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`the site has not answered ${what}`)), ANSWER_LIMIT_MS);
    });
    const line = await Promise.race([this.lines.next(), late]).finally(() => clearTimeout(timer));
    if (line.done) throw new Error(`the site has ended before it answered ${what}`);
    const value = JSON.parse(line.value);
    if (value.failed) throw new Error(`${what}: ${value.failed}`);
    return value;
  }

  async tell(command) {
    this.process.stdin.write(`${command}\n`);
    return this.answer(command);
  }

  async end() {
    const ended = new Promise((resolve) => this.process.once("exit", resolve));
    this.process.stdin.end();
    await ended;
  }
}
