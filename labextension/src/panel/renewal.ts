// Keeps an answer of the server new: asked for again whenever it may have changed.

/**
 * One question at a time, so that no older answer comes last, and one more where it was asked for
 * meanwhile. A question that failed is asked again.
 */
export class Renewal {
  private asking: object | null = null;
  private again = false;

  constructor(
    /** Asks. Whether the answer still counts when it comes, `current` says. */
    private readonly ask: (current: () => boolean) => Promise<void>,
    /** Calls back after a while. */
    private readonly later: (retry: () => void) => void,
  ) {}

  now(): void {
    this.again = true;
    if (!this.asking) void this.run();
  }

  /** Wait for no answer any more: it may never come. */
  drop(): void {
    this.asking = null;
    this.again = false;
  }

  private async run(): Promise<void> {
    const asked = {};
    const current = () => this.asking === asked;
    this.asking = asked;
    while (this.again && current()) {
      this.again = false;
      try {
        await this.ask(current);
      } catch {
        if (!current()) return;
        this.again = true; // and until it is tried, nothing else is begun
        this.later(() => {
          if (current()) void this.run();
        });
        return;
      }
    }
    if (current()) this.asking = null;
  }
}
