/**
 * Copies the binary so that the copy uses the loader and the libraries of its package, whatever libc
 * the machine has:
 *
 *     deno run -A scripts/portable_elf.ts FROM TO LOADER
 *
 * Linux reads the path of a program's loader from PT_INTERP, and the loader reads the folders of the
 * libraries from DT_RPATH. Both strings are written to unused bytes after the first segment. So
 * nothing moves: neither code nor the data that `deno compile` appends and the program finds at its
 * end. The field of the loader's path is padded with zeros. Its offset and size are printed, because
 * `install.sh --prefix` writes another path there.
 *
 * @module
 */

// Elf64_Ehdr, Elf64_Phdr and Elf64_Dyn, from elf.h.
const E_PHOFF = 32;
const E_PHNUM = 56;
const PHDR_BYTES = 56;
const P_OFFSET = 8;
const P_VADDR = 16;
const P_PADDR = 24;
const P_FILESZ = 32;
const P_MEMSZ = 40;
const DYN_BYTES = 16;
const PT_LOAD = 1;
const PT_DYNAMIC = 2;
const PT_INTERP = 3;
const DT_NULL = 0;
const DT_NEEDED = 1;
const DT_STRTAB = 5;
const DT_RPATH = 15;
const DT_RUNPATH = 29;
const PAGE_BYTES = 4096;

/** The folder of the libraries, relative to the folder of the program. */
const LIBRARY_FOLDER = "$ORIGIN/../lib\0";
const LOADER_NAME = "ld-linux-x86-64.so.2";
const LOADER_FIELD_BYTES = 1024;

/** The place of the loader's path in a program. */
export interface LoaderField {
  readonly offsetBytes: number;
  readonly sizeBytes: number;
}

class Elf {
  readonly #view: DataView;
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    // ELFCLASS64, ELFDATA2LSB
    if (this.#view.getUint32(0) !== 0x7f454c46 || bytes[4] !== 2 || bytes[5] !== 1) {
      throw new Error("Cannot make the program portable: it is no 64-bit little-endian ELF file");
    }
  }

  get(offset: number): number {
    return Number(this.#view.getBigUint64(offset, true));
  }

  set(offset: number, value: number): void {
    this.#view.setBigUint64(offset, BigInt(value), true);
  }

  text(offset: number): string {
    return new TextDecoder().decode(this.bytes.subarray(offset, this.bytes.indexOf(0, offset)));
  }

  /** The offset of the first program header of a type. */
  header(type: number): number {
    const first = this.get(E_PHOFF);
    const count = this.#view.getUint16(E_PHNUM, true);
    for (let i = 0; i < count; i++) {
      const offset = first + i * PHDR_BYTES;
      if (this.#view.getUint32(offset, true) === type) return offset;
    }
    throw new Error(`Cannot make the program portable: it has no program header of type ${type}`);
  }

  /** Offset of the first entry of the dynamic section with a tag, and a value that fits. */
  dynamic(tag: number, fits: (value: number) => boolean = () => true): number | undefined {
    for (let at = this.get(this.header(PT_DYNAMIC) + P_OFFSET);; at += DYN_BYTES) {
      const found = this.get(at);
      if (found === tag && fits(this.get(at + 8))) return at;
      if (found === DT_NULL) return undefined;
    }
  }
}

/** Extends the first segment over zeros after it; returns their offset, which is their address. */
function takeSpace(elf: Elf, sizeBytes: number): number {
  const segment = elf.header(PT_LOAD);
  const used = elf.get(segment + P_FILESZ);
  const start = Math.ceil(used / 16) * 16;
  const end = start + sizeBytes;
  const isFlat = elf.get(segment + P_OFFSET) === 0 && elf.get(segment + P_VADDR) === 0;
  const isFree = Math.ceil(used / PAGE_BYTES) * PAGE_BYTES >= end &&
    elf.bytes.subarray(used, end).every((byte) => byte === 0);
  if (!isFlat || !isFree) {
    throw new Error(
      `Cannot make the program portable: ${sizeBytes} bytes are not free after its first segment`,
    );
  }
  elf.set(segment + P_FILESZ, end);
  elf.set(segment + P_MEMSZ, end);
  return start;
}

/**
 * Changes a program in place: it gets the loader `loader`, and its libraries in `../lib` relative to
 * its folder.
 *
 * @param loader An absolute path.
 * @throws {Error} The program cannot be changed, or the path is too long.
 */
export function makePortable(bytes: Uint8Array, loader: string): LoaderField {
  const path = new TextEncoder().encode(loader);
  if (!loader.startsWith("/") || path.length >= LOADER_FIELD_BYTES) {
    throw new Error(`Cannot use ${loader} as the loader: its path must be absolute and shorter`);
  }
  const elf = new Elf(bytes);
  const strings = elf.dynamic(DT_STRTAB);
  const folders = elf.dynamic(DT_RPATH) ?? elf.dynamic(DT_RUNPATH);
  if (strings === undefined || folders !== undefined) {
    throw new Error("Cannot make the program portable: it has a search path for libraries");
  }
  const names = elf.get(strings + 8);
  // There is no room for a new entry. This one is redundant: libc.so.6 needs the loader too.
  const spare = elf.dynamic(DT_NEEDED, (name) => elf.text(names + name) === LOADER_NAME);
  if (spare === undefined) {
    throw new Error(`Cannot make the program portable: it does not need ${LOADER_NAME} itself`);
  }
  const folder = takeSpace(elf, 16 + LOADER_FIELD_BYTES);
  bytes.set(new TextEncoder().encode(LIBRARY_FOLDER), folder);
  elf.set(spare, DT_RPATH);
  elf.set(spare + 8, folder - names);
  const field = folder + 16;
  bytes.set(path, field);
  const interpreter = elf.header(PT_INTERP);
  for (const member of [P_OFFSET, P_VADDR, P_PADDR]) elf.set(interpreter + member, field);
  for (const member of [P_FILESZ, P_MEMSZ]) elf.set(interpreter + member, LOADER_FIELD_BYTES);
  return { offsetBytes: field, sizeBytes: LOADER_FIELD_BYTES };
}

if (import.meta.main) {
  const [from, to, loader] = Deno.args;
  const bytes = Deno.readFileSync(from);
  const { offsetBytes, sizeBytes } = makePortable(bytes, loader);
  Deno.writeFileSync(to, bytes, { mode: 0o755 });
  console.log(`${offsetBytes} ${sizeBytes}`);
}
