/**
 * Faults of the disk: errors, no room, files that hang.
 *
 * @module
 */
import { errnoName } from "../../../../ffi/errno.ts";
import type { Step } from "./step.ts";

/** Steps that change how the disk behaves. */
export const faultSteps: readonly Step[] = [
  {
    name: "errors",
    weight: 4,
    run(world, random) {
      const rule = world.faults.add(world.disk.paths);
      world.trace(() =>
        `  ${rule.left} of ${rule.kinds.join(", ")} on ${rule.path ?? "any file"} fail with ` +
        errnoName(rule.errno)
      );
      if (random.chance(0.5)) {
        world.scheduler.addTimer(random.below(8000), () => world.faults.end());
      }
    },
  },
  {
    name: "short transfers",
    weight: 2,
    run: (world, random) => world.faults.shorten(random.next() * 0.5),
  },
  {
    name: "no more errors",
    weight: 6,
    run: (world) => world.heal(),
  },
  {
    name: "full disk",
    weight: 2,
    run(world, random) {
      world.isFull = true;
      world.wasFull = true;
      world.disk.capacityBytes = world.disk.usedBytes + 4096 * random.below(20);
      world.scheduler.addTimer(random.below(8000), () => {
        world.disk.capacityBytes = Infinity;
      });
    },
  },
  {
    name: "hang",
    weight: 2,
    run(world, random) {
      const { paths } = world.disk;
      const path = paths[random.below(paths.length)];
      world.connection.hang(path, random.below(3000));
    },
  },
];
