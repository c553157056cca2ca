//! Threads that leave the host's signals to the host.
//!
//! A signal for a process is taken by any thread that does not block it. A thread of a library that took SIGTERM or a timer's
//! signal would run the host's handler on a stack that the host knows nothing of, and a write to a connection that is gone
//! raises SIGPIPE, whose default ends the process. So the client's threads are born with everything blocked but what a fault
//! of their own raises, and SIGPIPE becomes an error of the write. A thread inherits the mask of the one that makes it.

use std::{mem::MaybeUninit, ptr};

use libc::{
    SIG_SETMASK, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGPROF, SIGSEGV, SIGSYS, SIGTRAP, pthread_sigmask,
    sigdelset, sigfillset, sigset_t,
};

/// Faults of the thread itself, which cannot be put off, and the signal of profilers.
const NOT_BLOCKED: [libc::c_int; 8] = [SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT, SIGPROF];

/// Runs `make`; the threads that are made in it take no signal of the host. The caller's own mask is as before afterwards.
pub(crate) fn without_signals<T>(make: impl FnOnce() -> T) -> T {
    let before = Mask::block();
    let made = make();
    drop(before);
    made
}

/// The mask as it was, put back when dropped.
struct Mask(Option<sigset_t>);

impl Mask {
    fn block() -> Self {
        let (mut blocked, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: both sets are ours; sigfillset writes the first before it is read, and the second is read only if
        // pthread_sigmask says that it has written it.
        unsafe {
            sigfillset(blocked.as_mut_ptr());
            for signal in NOT_BLOCKED {
                sigdelset(blocked.as_mut_ptr(), signal);
            }
            let failed = pthread_sigmask(SIG_SETMASK, blocked.as_ptr(), before.as_mut_ptr()) != 0;
            Self((!failed).then(|| before.assume_init()))
        }
    }
}

impl Drop for Mask {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // SAFETY: the set was written by pthread_sigmask, and nothing is asked for in return.
            unsafe {
                pthread_sigmask(SIG_SETMASK, before, ptr::null_mut());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The blocked signals of the thread that asks, as the kernel has them: bit n - 1 for signal n.
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    #[test]
    fn a_thread_takes_no_signal_of_the_host_and_its_maker_is_as_before() {
        let has = |mask: u64, signal: i32| mask & (1 << (signal - 1)) != 0;
        let before = blocked();
        let inside = without_signals(|| std::thread::spawn(blocked)).join().unwrap();
        for signal in [libc::SIGPIPE, libc::SIGTERM, libc::SIGALRM, libc::SIGUSR1] {
            assert!(has(inside, signal), "signal {signal}");
        }
        for signal in NOT_BLOCKED {
            assert!(!has(inside, signal), "signal {signal}");
        }
        assert_eq!(blocked(), before);
        assert!(!has(before, libc::SIGPIPE));
    }
}
