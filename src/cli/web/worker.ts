import { errnoOf, messageOf } from "../../../ffi/errno.ts";
import type { Answer } from "../../web/jobs.ts";
import type { Work } from "../../web/work.ts";
import { doWork } from "../../web/worker.ts";

/** Does the piece of work that standard input has, and prints the answer. */
export async function runWorker(): Promise<void> {
  // Only the page's own process starts this one.
  const work: Work = JSON.parse(await new Response(Deno.stdin.readable).text());
  let answer: Answer;
  try {
    answer = { result: await doWork(work) };
  } catch (error) {
    answer = { errno: errnoOf(error), error: messageOf(error) };
  }
  const bytes = new TextEncoder().encode(JSON.stringify(answer));
  for (let done = 0; done < bytes.length;) done += Deno.stdout.writeSync(bytes.subarray(done));
}
