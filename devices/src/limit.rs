//! A rate limit for messages that a guest can cause.

use std::time::{Duration, Instant};

/// Messages per window.
const BURST: u32 = 5;
/// Length of the window.
const WINDOW: Duration = Duration::from_secs(10);

/// Lets a few messages through per window and counts the others.
#[derive(Debug, Default)]
pub struct LogLimit {
    window: Option<Instant>,
    passed: u32,
    held_back: u64,
}

impl LogLimit {
    /// Whether a message may be written now. `Some(n)`: yes, and `n` were held back since the last
    /// one that was.
    pub fn pass(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self
            .window
            .is_none_or(|start| now.duration_since(start) >= WINDOW)
        {
            self.window = Some(now);
            self.passed = 0;
        }
        if self.passed >= BURST {
            self.held_back = self.held_back.saturating_add(1);
            return None;
        }
        self.passed += 1;
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_rest_is_counted() {
        let mut limit = LogLimit::default();
        for _ in 0..BURST {
            assert_eq!(limit.pass(), Some(0));
        }
        assert_eq!(limit.pass(), None);
        assert_eq!(limit.pass(), None);
        limit.window = Some(Instant::now() - WINDOW);
        assert_eq!(limit.pass(), Some(2));
    }
}
