//! Spans of a shadow that are compared with the guest's tables together: the blocks that the guest
//! has named at once, neighbours read in one walk.
//!
//! What was announced apart is mapped apart even so, as Linux later unmaps it apart and iommufd
//! unmaps whole areas only.

use std::cmp::Reverse;
use std::ops::Range;

use crate::run::Run;

/// Blocks, united where they touch.
#[derive(Default)]
pub(super) struct Spans {
    /// In ascending order, none of them touches the next.
    list: Vec<Range<u64>>,
    /// Where blocks met, in ascending order.
    seams: Vec<u64>,
}

impl Spans {
    /// Those of `blocks`, in place of what they were; the memory is kept. Of blocks that are the same,
    /// one stays.
    ///
    /// Blocks are naturally aligned: one holds the other, or they have nothing in common. Areas may come
    /// with them, which overlap: then there is a seam more.
    pub(super) fn fill(&mut self, blocks: &mut Vec<Range<u64>>) {
        self.clear();
        blocks.sort_unstable_by_key(|block| (block.start, Reverse(block.end)));
        blocks.dedup();
        for block in blocks {
            match self.list.last_mut() {
                Some(span) if block.start <= span.end => {
                    if block.end > span.end {
                        self.seams.push(span.end);
                        span.end = block.end;
                    }
                }
                _ => self.list.push(block.clone()),
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.seams.clear();
    }

    /// How many blocks there were at least.
    pub(super) fn blocks(&self) -> usize {
        self.list.len() + self.seams.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.list.iter()
    }

    /// The parts of `range` that are in none of them, in ascending order.
    pub(super) fn outside(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let Range { start, end } = range;
        let first = self.list.partition_point(|span| span.end <= start);
        let within = self.list.iter().skip(first).cloned();
        let within = within.take_while(move |span| span.start < end);
        let mut at = start;
        within
            .chain(std::iter::once(end..end))
            .map(move |span| std::mem::replace(&mut at, span.end)..span.start)
            .filter(|part| !part.is_empty())
    }

    /// Cuts `runs` where blocks met.
    pub(super) fn cut(&self, runs: &mut Vec<Run>) {
        if self.seams.is_empty() {
            return;
        }
        for run in std::mem::take(runs) {
            let mut at = run.input;
            let first = self.seams.partition_point(|seam| *seam <= at);
            let seams = self.seams.iter().skip(first);
            for seam in seams.take_while(|seam| **seam < run.end()) {
                runs.push(run.part(&(at..*seam)));
                at = *seam;
            }
            runs.push(run.part(&(at..run.end())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_iommu::Rights;

    fn of(blocks: &[Range<u64>]) -> Spans {
        let mut spans = Spans::default();
        spans.fill(&mut blocks.to_vec());
        spans
    }

    #[test]
    fn blocks_that_touch_are_one_span_and_those_within_others_are_nothing() {
        let spans = of(&[
            0x3000..0x4000,
            0x9000..0xa000,
            0x2000..0x3000,
            0x4000..0x8000,
            0x3000..0x4000,
            0x6000..0x7000,
        ]);
        assert!(spans.iter().eq(&[0x2000..0x8000, 0x9000..0xa000]));
        assert_eq!(spans.blocks(), 4);
        let outside = |range| {
            let rest = spans.outside(range);
            rest.map(|rest| (rest.start, rest.end)).collect::<Vec<_>>()
        };
        assert_eq!(outside(0x2000..0x8000), []);
        assert_eq!(outside(0x7000..0x9000), [(0x8000, 0x9000)]);
        assert_eq!(
            outside(0..0xc000),
            [(0, 0x2000), (0x8000, 0x9000), (0xa000, 0xc000)]
        );
        assert_eq!(outside(0xb000..0xc000), [(0xb000, 0xc000)]);
    }

    #[test]
    fn runs_are_cut_where_blocks_met_and_nowhere_else() {
        let spans = of(&[0x2000..0x3000, 0x3000..0x4000, 0x4000..0x8000]);
        let run = |input, output, length| Run {
            input,
            output,
            length,
            rights: Rights::ALL,
        };
        let mut runs = vec![run(0x2000, 0x1_2000, 0x5000), run(0x9000, 0, 0x1000)];
        spans.cut(&mut runs);
        let expected = [
            run(0x2000, 0x1_2000, 0x1000),
            run(0x3000, 0x1_3000, 0x1000),
            run(0x4000, 0x1_4000, 0x3000),
            run(0x9000, 0, 0x1000),
        ];
        assert_eq!(runs, expected);
    }
}
