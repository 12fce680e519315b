//! Many independent pieces of work on all cores, one a core. Results come in the order of the pieces, whatever the number of
//! cores.

use std::{
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

/// `jobs`: at one time; nothing: as many as there are cores.
pub fn in_parallel<T: Sync, R: Send>(
    pieces: &[T],
    jobs: Option<usize>,
    work: impl Fn(usize, &T) -> R + Sync,
) -> Vec<R> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let jobs = jobs.unwrap_or(cores).clamp(1, pieces.len().max(1));
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<R>>> = Mutex::new(pieces.iter().map(|_| None).collect());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((number, piece)) = {
                    let number = next.fetch_add(1, Relaxed);
                    pieces.get(number).map(|piece| (number, piece))
                } {
                    let result = work(number, piece);
                    results.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(result);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().map(|result| result.expect("every piece was worked on")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_pieces() {
        let pieces: Vec<u64> = (0..100).collect();
        for jobs in [1, 3, 100] {
            assert_eq!(
                in_parallel(&pieces, Some(jobs), |_, piece| piece * 2),
                (0..100).map(|n| n * 2).collect::<Vec<u64>>()
            );
        }
        assert!(in_parallel(&[] as &[u64], None, |_, piece| *piece).is_empty());
    }
}
