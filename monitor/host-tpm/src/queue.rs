//! Who is served next: the discipline of the queue before the host's TPM, as data without threads.
//!
//! ```text
//! leaf of a VM ----> leaves     --all of them at once--> one quote  \
//!                                                                    > in turns, while both wait
//! enrolment, EK ---> operations --one at a time-------> the TPM     /
//! ```
//! What it promises, whoever asks and however often: every leaf that waits when a quote starts is in that
//! quote, in order of arrival, so nobody is overtaken; one VM has a few requests at most, waiting or being
//! quoted, and cannot fill the queue; quotes and operations wait for one of the other kind at most; a request
//! that is cancelled before its turn leaves nothing behind. It refuses what is beyond its limits at once.

use std::collections::VecDeque;

use coffer_formats::{Digest, InstanceId};

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Leaves that wait; a quote takes all of them.
    pub(crate) leaves: usize,
    /// Leaves of one VM that wait or are being quoted.
    pub(crate) of_one_vm: usize,
    /// Operations that wait.
    pub(crate) operations: usize,
}

impl Limits {
    /// The monitor's.
    pub(crate) const HOST: Self = Self {
        // 512 VMs, each with all it may have. 64 GiB of memory hold as many of the smallest useful guests. A
        // tree of 1024 leaves is 10 levels high; SPEC 4.5 allows 32.
        leaves: 1024,
        // An agent asks once. One that restarts asks again before the quote it no longer waits for is made.
        of_one_vm: 2,
        // One operator enrols a host once, in three steps, and looks at its identity now and then.
        operations: 8,
    };
}

/// Names a request, to cancel it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// Why a request may not wait.
pub(crate) type Full = &'static str;

const VM_FULL: Full = "this VM already waits for as many quotes as one VM may";
const LEAVES_FULL: Full = "too many VMs wait for a quote";
const OPERATIONS_FULL: Full = "too many operations wait";

/// A leaf that waits for a quote, and who is to hear of it.
#[derive(Debug)]
pub(crate) struct Leaf<W> {
    ticket: Ticket,
    vm: InstanceId,
    /// The leaf.
    pub(crate) digest: Digest,
    /// Who waits.
    pub(crate) waiter: W,
}

/// What the TPM does next.
#[derive(Debug)]
pub(crate) enum Work<W, O> {
    /// One quote over these leaves, in order of arrival; never none.
    Quote(Vec<Leaf<W>>),
    /// An operation.
    Operation(O),
}

/// The queue. `W` is who waits for a leaf, `O` is an operation.
#[derive(Debug)]
pub(crate) struct Queue<W, O> {
    limits: Limits,
    leaves: VecDeque<Leaf<W>>,
    operations: VecDeque<(Ticket, O)>,
    /// VMs of the leaves being quoted, one entry a leaf.
    in_quote: Vec<InstanceId>,
    quoted_last: bool,
    next_ticket: u64,
}

impl<W, O> Queue<W, O> {
    /// Nothing waits.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            leaves: VecDeque::new(),
            operations: VecDeque::new(),
            in_quote: Vec::new(),
            quoted_last: false,
            next_ticket: 0,
        }
    }

    /// A VM's leaf waits for the next quote.
    pub(crate) fn leaf(
        &mut self,
        vm: InstanceId,
        digest: Digest,
        waiter: W,
    ) -> Result<Ticket, Full> {
        let waiting = self.leaves.iter().map(|leaf| &leaf.vm);
        let of_this_vm = waiting.chain(&self.in_quote).filter(|other| **other == vm).count();
        if of_this_vm >= self.limits.of_one_vm {
            return Err(VM_FULL);
        }
        if self.leaves.len() >= self.limits.leaves {
            return Err(LEAVES_FULL);
        }
        let ticket = self.ticket();
        self.leaves.push_back(Leaf { ticket, vm, digest, waiter });
        Ok(ticket)
    }

    /// An operation waits for its turn.
    pub(crate) fn operation(&mut self, operation: O) -> Result<Ticket, Full> {
        if self.operations.len() >= self.limits.operations {
            return Err(OPERATIONS_FULL);
        }
        let ticket = self.ticket();
        self.operations.push_back((ticket, operation));
        Ok(ticket)
    }

    /// Nobody waits for this request any more. One whose turn has come is not called back.
    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        self.leaves.retain(|leaf| leaf.ticket != ticket);
        self.operations.retain(|(waiting, _)| *waiting != ticket);
    }

    /// What the TPM does next; none if nothing waits. The work before it must have been [`Self::finished`].
    pub(crate) fn next(&mut self) -> Option<Work<W, O>> {
        let quote = !self.leaves.is_empty() && (self.operations.is_empty() || !self.quoted_last);
        self.quoted_last = quote;
        if quote {
            self.in_quote = self.leaves.iter().map(|leaf| leaf.vm).collect();
            return Some(Work::Quote(self.leaves.drain(..).collect()));
        }
        self.operations.pop_front().map(|(_, operation)| Work::Operation(operation))
    }

    /// The work is done, well or not. To be called before its waiters hear, so that they may ask again.
    pub(crate) fn finished(&mut self) {
        self.in_quote.clear();
    }

    /// Drops everything that waits.
    pub(crate) fn clear(&mut self) {
        self.leaves.clear();
        self.operations.clear();
    }

    /// True if nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.leaves.is_empty() && self.operations.is_empty()
    }

    /// Who waits longest, if only leaves wait: a moment's patience may bring more of them.
    pub(crate) fn gathering(&self) -> Option<&W> {
        self.leaves.front().filter(|_| self.operations.is_empty()).map(|leaf| &leaf.waiter)
    }

    fn ticket(&mut self) -> Ticket {
        // At a request each nanosecond this wraps in five hundred years.
        self.next_ticket = self.next_ticket.wrapping_add(1);
        Ticket(self.next_ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SMALL: Limits = Limits { leaves: 5, of_one_vm: 2, operations: 3 };

    fn vm(n: u8) -> InstanceId {
        InstanceId([n; 16])
    }

    fn digest(n: usize) -> Digest {
        Digest::of(&[&n.to_be_bytes()])
    }

    /// Waiters of the next work; an operation is its own.
    fn next(queue: &mut Queue<usize, usize>) -> Option<(bool, Vec<usize>)> {
        let work = queue.next()?;
        queue.finished();
        Some(match work {
            Work::Quote(leaves) => (true, leaves.into_iter().map(|leaf| leaf.waiter).collect()),
            Work::Operation(operation) => (false, vec![operation]),
        })
    }

    #[test]
    fn the_next_quote_takes_everybody_who_waits_in_order() {
        let mut queue: Queue<usize, usize> = Queue::new(Limits::HOST);
        for n in 0..200u8 {
            queue.leaf(vm(n), digest(n.into()), n.into()).unwrap();
        }
        assert_eq!(next(&mut queue), Some((true, (0..200).collect())));
        assert_eq!(next(&mut queue), None);
    }

    #[test]
    fn one_vm_has_its_share_until_the_quote_is_made_and_no_more() {
        let mut queue: Queue<usize, usize> = Queue::new(SMALL);
        let ask = |queue: &mut Queue<usize, usize>, n| queue.leaf(vm(n), digest(0), 0).err();
        assert_eq!([ask(&mut queue, 1), ask(&mut queue, 1)], [None, None]);
        assert_eq!(ask(&mut queue, 1), Some(VM_FULL));
        assert_eq!(ask(&mut queue, 2), None, "another VM is not held up");
        assert!(queue.next().is_some());
        assert_eq!(ask(&mut queue, 1), Some(VM_FULL), "its requests are being quoted");
        queue.finished();
        assert_eq!(ask(&mut queue, 1), None);
    }

    #[test]
    fn a_full_queue_refuses_and_takes_again_when_it_is_not() {
        let mut queue: Queue<usize, usize> = Queue::new(SMALL);
        let tickets: Vec<_> = (0..5).map(|n| queue.leaf(vm(n), digest(0), 0).unwrap()).collect();
        assert_eq!(queue.leaf(vm(9), digest(0), 0), Err(LEAVES_FULL));
        queue.cancel(tickets[2]);
        assert!(queue.leaf(vm(9), digest(0), 0).is_ok());
        for _ in 0..3 {
            queue.operation(0).unwrap();
        }
        assert_eq!(queue.operation(0), Err(OPERATIONS_FULL));
    }

    #[test]
    fn quotes_and_operations_take_turns_however_many_ask() {
        let mut queue: Queue<usize, usize> = Queue::new(SMALL);
        for operation in 0..3 {
            queue.operation(operation).unwrap();
        }
        let mut kinds = Vec::new();
        for n in 0..6 {
            // A VM that asks again whenever it may.
            queue.leaf(vm(1), digest(n), n).unwrap();
            kinds.push(next(&mut queue).unwrap().0);
        }
        assert_eq!(kinds[..5], [true, false, true, false, true]);
    }

    #[test]
    fn what_is_cancelled_before_its_turn_is_not_done() {
        let mut queue: Queue<usize, usize> = Queue::new(SMALL);
        let gone = queue.leaf(vm(1), digest(1), 1).unwrap();
        queue.leaf(vm(2), digest(2), 2).unwrap();
        queue.cancel(gone);
        assert_eq!(next(&mut queue), Some((true, vec![2])));
        let gone = queue.operation(3).unwrap();
        queue.cancel(gone);
        queue.cancel(gone);
        assert!(queue.is_empty());
        assert_eq!(next(&mut queue), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Leaf(u8),
        Operation,
        Cancel(usize),
        Next,
        Finished,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..4).prop_map(Step::Leaf),
            2 => Just(Step::Operation),
            1 => any::<usize>().prop_map(Step::Cancel),
            2 => Just(Step::Next),
            2 => Just(Step::Finished),
        ]
    }

    /// Says the same as the queue from a plain list of all requests ever made.
    #[derive(Default)]
    struct Model {
        requests: Vec<Asked>,
        turns: Vec<bool>,
    }

    struct Asked {
        vm: Option<u8>,
        ticket: Ticket,
        state: State,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum State {
        Waits,
        Served,
        Over,
    }

    impl Model {
        fn count(&self, which: impl Fn(&Asked) -> bool) -> usize {
            self.requests.iter().filter(|asked| which(asked)).count()
        }

        fn waiting(&self, leaves: bool) -> Vec<usize> {
            let waits = |asked: &Asked| asked.state == State::Waits && asked.vm.is_some() == leaves;
            (0..self.requests.len()).filter(|at| waits(&self.requests[*at])).collect()
        }

        fn full(&self, vm: Option<u8>) -> Option<Full> {
            let Some(vm) = vm else {
                return (self.waiting(false).len() >= SMALL.operations).then_some(OPERATIONS_FULL);
            };
            let own = |asked: &Asked| asked.vm == Some(vm) && asked.state != State::Over;
            if self.count(own) >= SMALL.of_one_vm {
                return Some(VM_FULL);
            }
            (self.waiting(true).len() >= SMALL.leaves).then_some(LEAVES_FULL)
        }

        fn next(&self) -> Option<(bool, Vec<usize>)> {
            let (leaves, operations) = (self.waiting(true), self.waiting(false));
            match (leaves.is_empty(), operations.first(), self.turns.last()) {
                (true, None, _) => None,
                (true, Some(first), _) | (false, Some(first), Some(true)) => {
                    Some((false, vec![*first]))
                }
                (false, ..) => Some((true, leaves)),
            }
        }
    }

    proptest! {
        #[test]
        fn does_what_the_model_says(steps in proptest::collection::vec(step(), 0..200)) {
            let mut queue: Queue<usize, usize> = Queue::new(SMALL);
            let mut model = Model::default();
            let mut at_work = false;
            for step in steps {
                match step {
                    Step::Leaf(n) => {
                        let at = model.requests.len();
                        let answer = queue.leaf(vm(n), digest(at), at);
                        prop_assert_eq!(answer.err(), model.full(Some(n)));
                        if let Ok(ticket) = answer {
                            model.requests.push(Asked { vm: Some(n), ticket, state: State::Waits });
                        }
                    }
                    Step::Operation => {
                        let answer = queue.operation(model.requests.len());
                        prop_assert_eq!(answer.err(), model.full(None));
                        if let Ok(ticket) = answer {
                            model.requests.push(Asked { vm: None, ticket, state: State::Waits });
                        }
                    }
                    Step::Cancel(pick) => {
                        let at = pick % model.requests.len().max(1);
                        if let Some(asked) = model.requests.get_mut(at) {
                            queue.cancel(asked.ticket);
                            if asked.state == State::Waits {
                                asked.state = State::Over;
                            }
                        }
                    }
                    Step::Next if at_work => {}
                    Step::Next => {
                        let (expected, work) = (model.next(), queue.next());
                        at_work = work.is_some();
                        let found = work.map(|work| match work {
                            Work::Quote(leaves) => {
                                let digests = leaves.iter().map(|leaf| leaf.digest);
                                assert!(digests.eq(leaves.iter().map(|leaf| digest(leaf.waiter))));
                                (true, leaves.into_iter().map(|leaf| leaf.waiter).collect::<Vec<_>>())
                            }
                            Work::Operation(operation) => (false, vec![operation]),
                        });
                        prop_assert_eq!(&found, &expected);
                        model.turns.push(found.as_ref().is_some_and(|(quote, _)| *quote));
                        for at in found.into_iter().flat_map(|(_, requests)| requests) {
                            model.requests[at].state = State::Served;
                        }
                    }
                    Step::Finished => {
                        queue.finished();
                        at_work = false;
                        for asked in &mut model.requests {
                            if asked.state == State::Served {
                                asked.state = State::Over;
                            }
                        }
                    }
                }
                prop_assert_eq!(
                    queue.is_empty(),
                    model.count(|asked| asked.state == State::Waits) == 0
                );
            }
        }
    }
}
