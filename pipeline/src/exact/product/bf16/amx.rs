//! Blocks of c by AMX: two tiles of a and two of b give four tiles of sums.
//!
//! TDPBF16PS sums the even and the odd values of a tile's 32 apart, then adds both to the element.

use std::{arch::asm, sync::OnceLock};

use super::{
    pack::{GROUP, LINES},
    tiled::Block,
};

/// Whether the processor has tiles of bf16 and the system lets this process use them, for which it is asked once.
pub fn here() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| {
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        let leaf = std::arch::x86_64::__cpuid_count(7, 0);
        leaf.edx & (BF16 | TILE) == BF16 | TILE && permitted()
    })
}

/// Asks Linux for the state of tiles (8 KiB a thread that uses them), for the whole process: `arch_prctl(2)`.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: the call reads and writes no memory of ours; the kernel overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The tiles of this thread while they are configured: all eight of 16 rows of 64 bytes. Nothing else in the program uses them.
pub struct Tiles(());

impl Tiles {
    /// The processor has tiles and the system permits them: see [`here`].
    pub fn configured() -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        static CONFIG: Config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        // SAFETY: the processor has the instruction, and the configuration is one that palette 1 allows.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
        Tiles(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they were configured, so the processor has the instruction; a thread leaves its tiles as it found them.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// `SPLIT`: its groups hold values in two parts.
///
/// # Safety
/// Tiles are configured. The block lies in its buffers, and its groups hold as many tiles as it has rows and columns.
pub unsafe fn block<const SPLIT: bool>(s: &Block) {
    (0..s.rows).for_each(|row| near(s.c.wrapping_add(row * s.stride)));
    let whole = s.rows.is_multiple_of(LINES) && s.width.is_multiple_of(LINES) && s.scale == 1.0;
    if whole {
        // SAFETY: all rows and columns of the tiles are in c.
        return unsafe { sums::<SPLIT>(s, s.c, s.stride, s.fresh) };
    }
    let mut buffer = [0f32; GROUP * GROUP];
    // SAFETY: the buffer holds four tiles; c has the rows and columns of the block.
    unsafe {
        sums::<SPLIT>(s, buffer.as_mut_ptr(), GROUP, true);
        for (i, from) in buffer.as_chunks::<GROUP>().0.iter().enumerate().take(s.rows) {
            let to = std::slice::from_raw_parts_mut(s.c.add(i * s.stride), s.width);
            match s.fresh {
                true => to.iter_mut().zip(from).for_each(|(to, sum)| *to = s.scale * sum),
                false => to.iter_mut().zip(from).for_each(|(to, sum)| *to += s.scale * sum),
            }
        }
    }
}

/// Has two lines of c brought near, to be written: tiles that are stored would wait for them.
#[inline(always)]
fn near(at: *const f32) {
    // SAFETY: every processor with AMX has the instruction, and a prefetch changes nothing that the program sees.
    unsafe { asm!("prefetchw [{0}]", "prefetchw [{0} + 64]", in(reg) at, options(nostack, preserves_flags, readonly)) };
}

/// Writes one size of block: `$a` and `$b` bytes from step to step, tiles of c.
macro_rules! kernel {
    ($name:ident, $a:literal, $b:literal, zero $($zero:literal)*, load $($load:literal)*, step $($step:literal)*, store $($store:literal)*) => {
        /// # Safety
        /// As [`sums`]'.
        unsafe fn $name(s: &Block, c: *mut f32, stride: usize, fresh: bool) {
            // SAFETY: the caller's promise: groups of a and b hold `steps` steps, c the tiles that are written. No register is
            // left changed that is not named, and no flag matters.
            unsafe {
                asm!(
                    "test r10d, r10d",
                    "jz 2f",
                    $($zero,)*
                    "jmp 3f",
                    "2:",
                    $($load,)*
                    "3:",
                    $($step,)*
                    concat!("add rsi, ", $a),
                    concat!("add rdi, ", $b),
                    "dec rcx",
                    "jnz 3b",
                    $($store,)*
                    in("r10d") u32::from(fresh),
                    in("r8") c,
                    in("r9") c.wrapping_add(LINES * stride),
                    in("rdx") 4 * stride,
                    in("rax") 64usize,
                    inout("rsi") s.a => _,
                    inout("rdi") s.b => _,
                    inout("rcx") s.steps => _,
                    out("tmm0") _,
                    out("tmm1") _,
                    out("tmm2") _,
                    out("tmm3") _,
                    out("tmm4") _,
                    out("tmm5") _,
                    out("tmm6") _,
                    out("tmm7") _,
                    options(nostack)
                );
            }
        }
    };
}

kernel!(one_by_one, 1024, 1024,
    zero "tilezero tmm0",
    load "tileloadd tmm0, [r8 + rdx]",
    step "tileloadd tmm4, [rsi + rax]" "tileloadd tmm6, [rdi + rax]" "tdpbf16ps tmm0, tmm4, tmm6",
    store "tilestored [r8 + rdx], tmm0");

kernel!(one_by_two, 1024, 2048,
    zero "tilezero tmm0" "tilezero tmm1",
    load "tileloadd tmm0, [r8 + rdx]" "tileloadd tmm1, [r8 + rdx + 64]",
    step "tileloadd tmm4, [rsi + rax]" "tileloadd tmm6, [rdi + rax]" "tdpbf16ps tmm0, tmm4, tmm6"
        "tileloadd tmm7, [rdi + rax + 1024]" "tdpbf16ps tmm1, tmm4, tmm7",
    store "tilestored [r8 + rdx], tmm0" "tilestored [r8 + rdx + 64], tmm1");

kernel!(two_by_one, 2048, 1024,
    zero "tilezero tmm0" "tilezero tmm2",
    load "tileloadd tmm0, [r8 + rdx]" "tileloadd tmm2, [r9 + rdx]",
    step "tileloadd tmm4, [rsi + rax]" "tileloadd tmm6, [rdi + rax]" "tdpbf16ps tmm0, tmm4, tmm6"
        "tileloadd tmm5, [rsi + rax + 1024]" "tdpbf16ps tmm2, tmm5, tmm6",
    store "tilestored [r8 + rdx], tmm0" "tilestored [r9 + rdx], tmm2");

kernel!(two_by_two, 2048, 2048,
    zero "tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3",
    load "tileloadd tmm0, [r8 + rdx]" "tileloadd tmm1, [r8 + rdx + 64]"
        "tileloadd tmm2, [r9 + rdx]" "tileloadd tmm3, [r9 + rdx + 64]",
    step "tileloadd tmm4, [rsi + rax]" "tileloadd tmm6, [rdi + rax]" "tdpbf16ps tmm0, tmm4, tmm6"
        "tileloadd tmm7, [rdi + rax + 1024]" "tdpbf16ps tmm1, tmm4, tmm7"
        "tileloadd tmm5, [rsi + rax + 1024]" "tdpbf16ps tmm2, tmm5, tmm6"
        "tdpbf16ps tmm3, tmm5, tmm7",
    store "tilestored [r8 + rdx], tmm0" "tilestored [r8 + rdx + 64], tmm1"
        "tilestored [r9 + rdx], tmm2" "tilestored [r9 + rdx + 64], tmm3");

// Of values in two parts the groups hold, for each step, tiles of the first and then of the second. The products of the first
// part of a with both of b, and of its second with the first of b: what is left out is a part in 2^18.
kernel!(one_by_one_split, 2048, 2048,
    zero "tilezero tmm0",
    load "tileloadd tmm0, [r8 + rdx]",
    step "tileloadd tmm4, [rsi + rax]" "tileloadd tmm6, [rdi + rax]" "tdpbf16ps tmm0, tmm4, tmm6"
        "tileloadd tmm5, [rsi + rax + 1024]" "tdpbf16ps tmm0, tmm5, tmm6"
        "tileloadd tmm7, [rdi + rax + 1024]" "tdpbf16ps tmm0, tmm4, tmm7",
    store "tilestored [r8 + rdx], tmm0");

kernel!(one_by_two_split, 2048, 4096,
    zero "tilezero tmm0" "tilezero tmm1",
    load "tileloadd tmm0, [r8 + rdx]" "tileloadd tmm1, [r8 + rdx + 64]",
    step "tileloadd tmm4, [rsi + rax]" "tileloadd tmm6, [rdi + rax]" "tdpbf16ps tmm0, tmm4, tmm6"
        "tileloadd tmm7, [rdi + rax + 1024]" "tdpbf16ps tmm1, tmm4, tmm7"
        "tileloadd tmm5, [rsi + rax + 1024]" "tdpbf16ps tmm0, tmm5, tmm6" "tdpbf16ps tmm1, tmm5, tmm7"
        "tileloadd tmm6, [rdi + rax + 2048]" "tdpbf16ps tmm0, tmm4, tmm6"
        "tileloadd tmm7, [rdi + rax + 3072]" "tdpbf16ps tmm1, tmm4, tmm7",
    store "tilestored [r8 + rdx], tmm0" "tilestored [r8 + rdx + 64], tmm1");

kernel!(two_by_one_split, 4096, 2048,
    zero "tilezero tmm0" "tilezero tmm2",
    load "tileloadd tmm0, [r8 + rdx]" "tileloadd tmm2, [r9 + rdx]",
    step "tileloadd tmm4, [rsi + rax]" "tileloadd tmm6, [rdi + rax]" "tdpbf16ps tmm0, tmm4, tmm6"
        "tileloadd tmm5, [rsi + rax + 1024]" "tdpbf16ps tmm2, tmm5, tmm6"
        "tileloadd tmm7, [rdi + rax + 1024]" "tdpbf16ps tmm0, tmm4, tmm7" "tdpbf16ps tmm2, tmm5, tmm7"
        "tileloadd tmm4, [rsi + rax + 2048]" "tdpbf16ps tmm0, tmm4, tmm6"
        "tileloadd tmm5, [rsi + rax + 3072]" "tdpbf16ps tmm2, tmm5, tmm6",
    store "tilestored [r8 + rdx], tmm0" "tilestored [r9 + rdx], tmm2");

kernel!(two_by_two_split, 4096, 4096,
    zero "tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3",
    load "tileloadd tmm0, [r8 + rdx]" "tileloadd tmm1, [r8 + rdx + 64]"
        "tileloadd tmm2, [r9 + rdx]" "tileloadd tmm3, [r9 + rdx + 64]",
    step "tileloadd tmm4, [rsi + rax]" "tileloadd tmm6, [rdi + rax]" "tdpbf16ps tmm0, tmm4, tmm6"
        "tileloadd tmm7, [rdi + rax + 1024]" "tdpbf16ps tmm1, tmm4, tmm7"
        "tileloadd tmm5, [rsi + rax + 1024]" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"
        "tileloadd tmm4, [rsi + rax + 2048]" "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7"
        "tileloadd tmm5, [rsi + rax + 3072]" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"
        "tileloadd tmm4, [rsi + rax]" "tileloadd tmm6, [rdi + rax + 2048]" "tdpbf16ps tmm0, tmm4, tmm6"
        "tileloadd tmm7, [rdi + rax + 3072]" "tdpbf16ps tmm1, tmm4, tmm7"
        "tileloadd tmm5, [rsi + rax + 1024]" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7",
    store "tilestored [r8 + rdx], tmm0" "tilestored [r8 + rdx + 64], tmm1"
        "tilestored [r9 + rdx], tmm2" "tilestored [r9 + rdx + 64], tmm3");

/// Adds the sums of the block's tiles to `c`, or writes them there.
///
/// # Safety
/// As [`block`]'s; `c` holds whole tiles.
unsafe fn sums<const SPLIT: bool>(s: &Block, c: *mut f32, stride: usize, fresh: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        match (SPLIT, s.rows > LINES, s.width > LINES) {
            (false, false, false) => one_by_one(s, c, stride, fresh),
            (false, false, true) => one_by_two(s, c, stride, fresh),
            (false, true, false) => two_by_one(s, c, stride, fresh),
            (false, true, true) => two_by_two(s, c, stride, fresh),
            (true, false, false) => one_by_one_split(s, c, stride, fresh),
            (true, false, true) => one_by_two_split(s, c, stride, fresh),
            (true, true, false) => two_by_one_split(s, c, stride, fresh),
            (true, true, true) => two_by_two_split(s, c, stride, fresh),
        }
    }
}
