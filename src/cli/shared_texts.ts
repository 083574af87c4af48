/** What every `--help` and manual page says of the option that allows folders for parents. */
export const PARENT_ROOT_TEXT =
  "allow parents in this folder too, or 'any', or 'rbd' (Ceph); repeatable";
