//! What people see of a group's sites.

use crate::show;
use afterimage_agent::api::SiteStatus;

/// The lines of one site.
pub(super) fn detail(site: &SiteStatus) -> String {
    let span = |ms: Option<u64>| ms.map_or("-".into(), show::span_ms);
    let mut text = format!(
        "  site {}: {}, RPO {}, lag {}",
        site.site,
        site.state,
        span(site.rpo_ms),
        span(site.lag_ms)
    );
    text += &left(site);
    text.push('\n');
    if let Some(error) = &site.error {
        let since =
            site.error_since.map_or(String::new(), |t| format!(" since {}", show::clock(t)));
        let what = if site.failing { "failing" } else { "last failed" };
        text += &format!("    {what}{since}: {error}\n");
    }
    text
}

/// One phrase for the live view.
pub(super) fn line(site: &SiteStatus) -> String {
    let rpo = site.rpo_ms.map_or("-".into(), show::span_ms);
    format!("site {} {} rpo {rpo}{}", site.site, site.state, left(site))
}

fn left(site: &SiteStatus) -> String {
    let mut text = String::new();
    if site.backlog_bytes > 0 {
        text += &format!(", {} to send", show::bytes(site.backlog_bytes));
    }
    if site.background_bytes > 0 {
        text += &format!(", {} of older history to copy", show::bytes(site.background_bytes));
    }
    match site.catch_up_s {
        Some(s) if s > 0 => {
            text + &format!(", about {} left", show::span_ms(s.saturating_mul(1000)))
        }
        _ => text,
    }
}
