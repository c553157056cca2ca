//! Answers in the order of the outbox.
//!
//! The outbox forgets from the front, so an envelope that is answered while an older one is not has to wait here. Bounded
//! by the window: nothing is in here that was not taken into it, or settled without being sent.

use std::collections::VecDeque;

use pithead_spool::Position;

/// Positions under way, oldest first, and which of them are settled.
#[derive(Debug, Default)]
pub(super) struct Order {
    under_way: VecDeque<(Position, bool)>,
}

impl Order {
    /// `position` was taken; later than all before it.
    pub(super) fn taken(&mut self, position: Position) {
        self.under_way.push_back((position, false));
    }

    /// `position` was taken last, and is not under way after all.
    pub(super) fn give_back(&mut self, position: Position) {
        if self.under_way.back().is_some_and(|(last, _)| *last == position) {
            self.under_way.pop_back();
        }
    }

    /// `position` is answered for good.
    pub(super) fn settled(&mut self, position: Position) {
        if let Ok(index) = self.under_way.binary_search_by_key(&position, |(position, _)| *position) {
            self.under_way[index].1 = true;
        }
    }

    /// The last position such that it and everything before it is settled, once.
    pub(super) fn forgettable(&mut self) -> Option<Position> {
        let mut last = None;
        while let Some((position, true)) = self.under_way.front() {
            last = Some(*position);
            self.under_way.pop_front();
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_forgotten_ahead_of_an_older_one_without_an_answer() {
        let mut order = Order::default();
        for position in [3, 4, 6, 9] {
            order.taken(Position(position));
        }
        order.settled(Position(4));
        order.settled(Position(6));
        assert_eq!(order.forgettable(), None);
        order.settled(Position(3));
        assert_eq!(order.forgettable(), Some(Position(6)));
        assert_eq!(order.forgettable(), None);
        order.settled(Position(9));
        order.settled(Position(77));
        assert_eq!(order.forgettable(), Some(Position(9)));
    }
}
