//! The device status field as a state machine (virtio 1.2 section 2.1 and 3.1), given as data.

/// Guest found the device.
pub const ACKNOWLEDGE: u32 = 1;
/// Guest has a driver.
pub const DRIVER: u32 = 2;
/// Driver runs.
pub const DRIVER_OK: u32 = 4;
/// Features are agreed.
pub const FEATURES_OK: u32 = 8;
/// Device met something it cannot go on from.
pub const NEEDS_RESET: u32 = 64;
/// Driver gave up.
pub const FAILED: u32 = 128;

const FOUND: u32 = ACKNOWLEDGE;
/// The driver may choose features.
pub const DRIVEN: u32 = FOUND | DRIVER;
/// The driver may describe queues: features are agreed, and it does not run yet.
pub const AGREED: u32 = DRIVEN | FEATURES_OK;
/// The device serves its queues.
pub const RUNNING: u32 = AGREED | DRIVER_OK;

/// The only ways forward. Reset (writing 0) and giving up (setting FAILED) are always open and stand beside this table.
const FORWARD: [(u32, u32); 4] = [(0, FOUND), (FOUND, DRIVEN), (DRIVEN, AGREED), (AGREED, RUNNING)];

/// What a write to the status register asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Back to the beginning.
    Reset,
    /// Driver gives up.
    GiveUp,
    /// Next state, nothing to do.
    Advance(u32),
    /// Features are to be agreed: next state if they are.
    Agree(u32),
    /// Queues are to be frozen and the device started: next state if they are sound.
    Activate(u32),
    /// Not a transition; the write is ignored.
    Refused,
}

/// Which step a write of `wanted` in state `current` is.
pub fn step(current: u32, wanted: u32) -> Step {
    if wanted == 0 {
        return Step::Reset;
    }
    if current & (NEEDS_RESET | FAILED) != 0 {
        return Step::Refused;
    }
    if wanted & FAILED != 0 {
        return Step::GiveUp;
    }
    match FORWARD.contains(&(current, wanted)) {
        false => Step::Refused,
        true if wanted == AGREED => Step::Agree(wanted),
        true if wanted == RUNNING => Step::Activate(wanted),
        true => Step::Advance(wanted),
    }
}

/// True if some driver can lead a device here.
pub fn reachable(status: u32) -> bool {
    let forward = |status| status == 0 || FORWARD.iter().any(|(_, next)| *next == status);
    forward(status & !FAILED) || status == AGREED | NEEDS_RESET
}

/// True once queues are live, whether they are served or not.
pub fn activated(status: u32) -> bool {
    status & DRIVER_OK != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linux_sequence_is_the_only_way_forward() {
        assert_eq!(step(0, 1), Step::Advance(1));
        assert_eq!(step(1, 3), Step::Advance(3));
        assert_eq!(step(3, 11), Step::Agree(11));
        assert_eq!(step(11, 15), Step::Activate(15));
        let legal = [(0, 1), (1, 3), (3, 11), (11, 15)];
        for current in 0..16 {
            for wanted in 1..128 {
                assert_eq!(
                    step(current, wanted) == Step::Refused,
                    !legal.contains(&(current, wanted)),
                    "{current} {wanted}"
                );
            }
        }
    }

    #[test]
    fn what_is_reachable_is_what_steps_lead_to() {
        let mut reached = std::collections::BTreeSet::from([0]);
        for _ in 0..reached.len() + 8 {
            for current in reached.clone() {
                reached.extend((0..256).filter_map(|wanted| match step(current, wanted) {
                    Step::Reset => Some(0),
                    Step::GiveUp => Some(current | FAILED),
                    Step::Advance(next) | Step::Agree(next) => Some(next),
                    Step::Activate(next) => Some(next),
                    Step::Refused => None,
                }));
            }
        }
        // Where queues are no memory.
        reached.insert(AGREED | NEEDS_RESET);
        let all = (0..0x1_0000).filter(|status| reachable(*status));
        assert_eq!(all.collect::<std::collections::BTreeSet<_>>(), reached);
    }

    #[test]
    fn a_failed_device_only_resets() {
        assert_eq!(step(15 | NEEDS_RESET, 15), Step::Refused);
        assert_eq!(step(FAILED, FAILED | 1), Step::Refused);
        assert_eq!(step(15 | NEEDS_RESET, 0), Step::Reset);
        assert_eq!(step(3, 3 | FAILED), Step::GiveUp);
    }
}
