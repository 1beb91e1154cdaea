//! The two formats that scrapers read, and which of them one wants. `OpenMetrics` is what the library writes; the other is
//! the text format of Prometheus, version 0.0.4, which whoever does not ask for `OpenMetrics` understands.

use http::{HeaderMap, header::ACCEPT};

/// A format of `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// `OpenMetrics` 1.0.0.
    OpenMetrics,
    /// The text format of Prometheus.
    Plain,
}

impl Format {
    /// The one that a scraper likes better; the plain one if it does not say so.
    pub(crate) fn wanted(headers: &HeaderMap) -> Self {
        let (mut open_metrics, mut plain) = (0.0_f32, 0.0_f32);
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for range in values.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let weight: f32 =
                parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
            match kind {
                "application/openmetrics-text" => open_metrics = weight.max(open_metrics),
                "text/plain" | "text/*" => plain = weight.max(plain),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= plain { Self::OpenMetrics } else { Self::Plain }
    }

    /// Its content type, which Prometheus goes by.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Units, which are the last words of names.
const UNITS: [&str; 2] = ["seconds", "bytes"];

/// `OpenMetrics` with the unit of each metric that has one.
pub(super) fn with_units(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 2048);
    for line in open_metrics.lines() {
        text.extend([line, "\n"]);
        let typed = line.strip_prefix("# TYPE ").and_then(|typed| typed.split_once(' '));
        let unit = typed.and_then(|(name, _)| Some((name, name.rsplit_once('_')?.1)));
        if let Some((name, unit)) = unit.filter(|(_, unit)| UNITS.contains(unit)) {
            text.extend(["# UNIT ", name, " ", unit, "\n"]);
        }
    }
    text
}

/// `OpenMetrics` as plain text: samples are the same in both, but what is said of a metric names it by its samples, and there
/// are no units and no end.
pub(super) fn plain(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            // How it is named depends on the type, which comes next.
            help = described.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|typed| typed.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some((_, words)) = help.take() {
                text.extend(["# HELP ", name, suffix, " ", words, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_what_it_likes_better() {
        // The second one is that of Prometheus 2.42, the third one that of Prometheus 3.
        for (accept, format) in [
            ("", Format::Plain),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                 text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", Format::Plain),
            ("text/plain, application/openmetrics-text; q=0.4", Format::Plain),
            ("application/openmetrics-text;q=0, */*", Format::Plain),
            ("*/*", Format::Plain),
        ] {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(Format::wanted(&headers), format, "{accept}");
        }
    }

    #[test]
    fn plain_text_names_a_metric_as_its_samples_are_named() {
        let open_metrics = "# HELP a Of a.\n# TYPE a counter\n# UNIT a seconds\na_total{x=\"# y\"} 1\n\
                            # HELP b Of b.\n# TYPE b info\nb_info{} 1\n# HELP c Of c.\n# TYPE c histogram\n\
                            c_count 0\n# HELP d Of d.\n# TYPE d unknown\nd 1\n# EOF\n";
        let text = "# HELP a_total Of a.\n# TYPE a_total counter\na_total{x=\"# y\"} 1\n\
                    # HELP b_info Of b.\n# TYPE b_info gauge\nb_info{} 1\n# HELP c Of c.\n# TYPE c histogram\n\
                    c_count 0\n# HELP d Of d.\n# TYPE d untyped\nd 1\n";
        assert_eq!(plain(open_metrics), text);
    }

    #[test]
    fn a_metric_whose_name_ends_in_a_unit_has_it() {
        let given = "# HELP a_seconds In seconds.\n# TYPE a_seconds counter\na_seconds_total 1\n\
                     # TYPE b_bytes_limit gauge\nb_bytes_limit 2\n# TYPE c_bytes gauge\nc_bytes 3\n# EOF\n";
        let text = "# HELP a_seconds In seconds.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\n\
                    a_seconds_total 1\n# TYPE b_bytes_limit gauge\nb_bytes_limit 2\n# TYPE c_bytes gauge\n\
                    # UNIT c_bytes bytes\nc_bytes 3\n# EOF\n";
        assert_eq!(with_units(given), text);
    }
}
