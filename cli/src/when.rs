//! Unix seconds as people read them.

use std::time::{SystemTime, UNIX_EPOCH};

/// `5 s ago`, `3 min ago`, ...; `now` for times that this machine's clock has not reached.
pub fn ago(unix: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    span(now.saturating_sub(unix))
}

fn span(seconds: u64) -> String {
    match seconds {
        0 => "now".into(),
        1..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn spans_change_unit_where_people_do() {
        let spans = [0, 1, 119, 120, 7199, 7200, 172_800].map(super::span);
        assert_eq!(
            spans,
            ["now", "1 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "2 days ago"]
        );
    }
}
