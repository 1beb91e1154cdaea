//! What the process uses of the machine, under the names that every Prometheus client gives it, and how busy its one
//! thread is.

use std::{fmt, fs, time::SystemTime};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use tokio::runtime::Handle;

/// In which Linux tells CPU time to programs, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// The seconds for which the thread that does all the work was busy.
#[derive(Debug, Clone)]
pub(super) struct Busy(pub(super) Option<Handle>);

impl EncodeMetric for Busy {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let busy = self.0.as_ref().map(|handle| handle.metrics().worker_total_busy_duration(0));
        let seconds = busy.unwrap_or_default().as_secs_f64();
        encoder.encode_counter::<NoLabelSet, _, u64>(&seconds, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// The figures of the process. They are read from files of the kernel, which are in memory.
#[derive(Debug)]
pub(super) struct Process {
    started: SystemTime,
}

impl Process {
    /// It is created as the process starts.
    pub(super) fn starting() -> Self {
        Self { started: SystemTime::now() }
    }
}

/// What the kernel says of the process.
#[derive(Debug, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    resident_bytes: i64,
    virtual_bytes: i64,
}

impl Usage {
    fn now() -> Option<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).ok();
        Self::of(&read("stat")?, &read("status")?)
    }

    /// From the texts of `stat` and `status` [proc(5)].
    fn of(stat: &str, status: &str) -> Option<Self> {
        // Behind the name, which may have spaces and parentheses in it, utime and stime are the 12th and 13th.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
        let mut ticks = || fields.next()?.parse::<f64>().ok();
        let cpu_seconds = (ticks()? + ticks()?) / TICKS_PER_SECOND;
        let bytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            let kibibytes = line.trim().strip_suffix(" kB")?.parse::<i64>().ok()?;
            Some(kibibytes * 1024)
        };
        let (resident_bytes, virtual_bytes) = (bytes("VmRSS:")?, bytes("VmSize:")?);
        Some(Self { cpu_seconds, resident_bytes, virtual_bytes })
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: i64| {
            let gauge = ConstGauge::new(value);
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor(name, help, None, kind)?)
        };
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // One is open to count them.
            let open = i64::try_from(files.count()).unwrap_or(i64::MAX) - 1;
            gauge("process_open_fds", "File descriptors that are open", open)?;
        }
        if let Ok((soft, _)) = rlimit::Resource::NOFILE.get() {
            let most = i64::try_from(soft).unwrap_or(i64::MAX);
            gauge("process_max_fds", "File descriptors that may be open", most)?;
        }
        let usage = Usage::now();
        if let Some(Usage { resident_bytes, virtual_bytes, .. }) = usage {
            gauge("process_resident_memory_bytes", "Memory that is resident", resident_bytes)?;
            gauge("process_virtual_memory_bytes", "Memory that is addressed", virtual_bytes)?;
        }
        let started = self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let started = ConstGauge::new(started.as_secs_f64());
        let (name, help) =
            ("process_start_time_seconds", "When the process started, in seconds since 1970");
        let kind = started.metric_type();
        started.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        if let Some(Usage { cpu_seconds, .. }) = usage {
            let (name, help) =
                ("process_cpu_seconds", "CPU time, of the program and in the kernel");
            let kind = MetricType::Counter;
            let family = encoder.encode_descriptor(name, help, None, kind)?;
            ConstCounter::new(cpu_seconds).encode(family)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read_whatever_the_program_is_called() {
        let stat = "17 (a) b 9) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 1 0 99 1 2\n";
        let status = "Name:\ta\nVmPeak:\t   99 kB\nVmSize:\t    2048 kB\nVmRSS:\t       3 kB\n";
        let usage = Usage { cpu_seconds: 4.0, resident_bytes: 3072, virtual_bytes: 2 << 20 };
        assert_eq!(Usage::of(stat, status), Some(usage));
        assert_eq!(Usage::of("", ""), None);
        assert!(Usage::now().unwrap().resident_bytes > 1 << 20);
    }
}
