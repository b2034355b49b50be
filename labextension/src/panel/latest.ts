// Sends the newest of what comes faster than it should be sent.

/**
 * Calls `send` at once, and then with the newest value only, one call after the other and at least
 * `gap` milliseconds apart. `settled` is called when nothing is left to send.
 */
export class Latest<T> {
  private waiting: { value: T } | null = null;
  private busy = false;

  constructor(
    private readonly send: (value: T) => Promise<void>,
    private readonly settled: () => void,
    private readonly gap = 250,
  ) {}

  put(value: T): void {
    this.waiting = { value };
    if (!this.busy) void this.run();
  }

  /** Let go of what was not sent yet. */
  drop(): void {
    this.waiting = null;
  }

  private async run(): Promise<void> {
    this.busy = true;
    while (this.waiting) {
      const { value } = this.waiting;
      this.waiting = null;
      const rest = new Promise((resolve) => setTimeout(resolve, this.gap));
      await this.send(value).catch(() => {});
      if (!this.waiting) break;
      await rest;
    }
    this.busy = false;
    this.settled();
  }
}
