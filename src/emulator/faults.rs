//! Trouble on demand: which call or stream meets which fault. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::errors::Call;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The call fails with `code` and `status`; a stream ends with them.
    Error,
    /// UNAUTHENTICATED with `service.auth.error`; at the token endpoint `invalid_grant`, expired.
    ExpiredToken,
    /// The call is never answered.
    Hang,
    /// The HTTP/2 stream is reset without a status; the token endpoint drops the connection's answer.
    Reset,
    /// The whole TCP connection is dropped, with every stream on it.
    Disconnect,
    /// Every open connection stops answering, pings too, and stays open.
    HalfOpen,
    /// The stream stays open and sends nothing more, no keepalives either.
    Silence,
    /// The answer, or the stream's next response, comes `delay_ms` late.
    Delay,
    /// The stream ends cleanly.
    End,
    /// The stream opens, its headers arrive, and then it fails with `code`. For Publish: the events are
    /// on the bus, and then the call fails.
    AcceptThenFail,
    /// An event's payload is random bytes; GetSchema answers what is not JSON; the token endpoint HTML.
    CorruptPayload,
    /// An event's payload is 20 MB, more than a client will take in one message.
    Oversize,
    /// An event is delivered twice, where there is a credit for the repeat.
    Duplicate,
    /// An event carries a lower replay ID than the one before it.
    LowerReplayId,
    /// An event carries no replay ID.
    MissingReplayId,
    /// A published event is refused on its own: a result with an error, in a call that succeeds.
    RejectEvent,
}

impl FaultKind {
    /// Applies to single events on their way out.
    fn touches_events(self) -> bool {
        matches!(
            self,
            Self::CorruptPayload
                | Self::Oversize
                | Self::Duplicate
                | Self::LowerReplayId
                | Self::MissingReplayId
        )
    }

    /// Makes sense only in an open stream.
    fn needs_a_stream(self) -> bool {
        matches!(self, Self::Silence | Self::End)
    }

    /// Leaves an open stream without further responses.
    fn stops_a_stream(self) -> bool {
        !self.touches_events() && !matches!(self, Self::Delay | Self::RejectEvent)
    }
}

/// One fault: where, what, how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The call that meets it.
    pub rpc: Call,
    /// What goes wrong.
    pub kind: FaultKind,
    /// Error code, with or without the common prefix; at the token endpoint the OAuth error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Number of the gRPC status, where it is not the code's own; at the token endpoint of the HTTP
    /// status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<i32>,
    /// The message, or the OAuth error's description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How many calls or events meet it; none means until it is cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// For Subscribe: a stream meets it once it has delivered this many events, streams already open
    /// too. Without it `silence` and `end` meet any open stream at once, all others the next call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_events: Option<u64>,
    /// For `delay`: how late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Only for this topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
}

impl Fault {
    /// A fault that the next call of this kind meets, once.
    pub fn once(rpc: Call, kind: FaultKind) -> Self {
        Self {
            rpc,
            kind,
            code: None,
            status: None,
            message: None,
            times: Some(1),
            after_events: None,
            delay_ms: None,
            topic: None,
        }
    }

    /// The next call of this kind fails with a documented code.
    pub fn error(rpc: Call, code: &str) -> Self {
        Self {
            code: Some(code.to_owned()),
            ..Self::once(rpc, FaultKind::Error)
        }
    }

    /// The same fault, met this often.
    pub fn times(self, times: u32) -> Self {
        Self {
            times: Some(times),
            ..self
        }
    }

    /// The same fault, met until it is cleared.
    pub fn until_cleared(self) -> Self {
        Self {
            times: None,
            ..self
        }
    }

    /// The same fault, met by a stream that has delivered this many events.
    pub fn after_events(self, events: u64) -> Self {
        Self {
            after_events: Some(events),
            ..self
        }
    }

    /// The same fault, for one topic only.
    pub fn on_topic(self, topic: &str) -> Self {
        Self {
            topic: Some(topic.to_owned()),
            ..self
        }
    }

    /// How late a delayed answer is; one second where nothing is said.
    pub(super) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.unwrap_or(1000))
    }

    fn is_for(&self, call: Call, topic: Option<&str>) -> bool {
        self.rpc == call && (self.topic.is_none() || self.topic.as_deref() == topic)
    }

    /// The number of delivered events from which an open stream meets this fault.
    fn stream_threshold(&self) -> Option<u64> {
        if !self.kind.stops_a_stream() {
            None
        } else if self.kind.needs_a_stream() {
            Some(self.after_events.unwrap_or(0))
        } else {
            self.after_events
        }
    }
}

/// The faults that are switched on, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    active: Vec<Fault>,
}

impl Faults {
    /// Switches one on.
    pub(super) fn add(&mut self, fault: Fault) {
        if fault.times != Some(0) {
            self.active.push(fault);
        }
    }

    /// Switches all of them off.
    pub(super) fn clear(&mut self) {
        self.active.clear();
    }

    /// What is switched on, with the times that are left.
    pub(super) fn list(&self) -> &[Fault] {
        &self.active
    }

    /// The fault that a call meets as it arrives.
    pub(super) fn at_call(&mut self, call: Call, topic: Option<&str>) -> Option<Fault> {
        self.take(|fault| {
            fault.is_for(call, topic)
                && fault.after_events.is_none()
                && !fault.kind.needs_a_stream()
                && !(call == Call::Subscribe && fault.kind.touches_events())
        })
    }

    /// The fault that an open stream meets, having delivered so many events.
    pub(super) fn in_stream(&mut self, topic: &str, delivered: u64) -> Option<Fault> {
        self.take(|fault| {
            fault.is_for(Call::Subscribe, Some(topic))
                && fault
                    .stream_threshold()
                    .is_some_and(|threshold| delivered >= threshold)
        })
    }

    /// How many more events a stream may deliver before it meets a fault.
    pub(super) fn events_left(&self, topic: &str, delivered: u64) -> Option<u64> {
        self.active
            .iter()
            .filter(|fault| fault.is_for(Call::Subscribe, Some(topic)))
            .filter_map(Fault::stream_threshold)
            .map(|threshold| threshold.saturating_sub(delivered))
            .min()
    }

    /// True where some of a stream's next events may go out twice.
    pub(super) fn duplicates(&self, topic: &str) -> bool {
        self.active.iter().any(|fault| {
            fault.kind == FaultKind::Duplicate && fault.is_for(Call::Subscribe, Some(topic))
        })
    }

    /// The delay that a stream's next response meets, the stream having delivered so many events.
    pub(super) fn on_response(&mut self, topic: &str, delivered: u64) -> Option<Duration> {
        self.take(|fault| {
            fault.is_for(Call::Subscribe, Some(topic))
                && fault.kind == FaultKind::Delay
                && fault.after_events.is_some_and(|after| after <= delivered)
        })
        .map(|fault| fault.delay())
    }

    /// The fault that one outgoing event meets, its stream having delivered so many before. Only where
    /// it may be repeated does it meet a `duplicate`, which otherwise waits for the next event.
    pub(super) fn on_event(
        &mut self,
        topic: &str,
        delivered: u64,
        may_repeat: bool,
    ) -> Option<FaultKind> {
        self.take(|fault| {
            fault.is_for(Call::Subscribe, Some(topic))
                && fault.kind.touches_events()
                && (may_repeat || fault.kind != FaultKind::Duplicate)
                && fault.after_events.unwrap_or(0) <= delivered
        })
        .map(|fault| fault.kind)
    }

    fn take(&mut self, matches: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let index = self.active.iter().position(matches)?;
        let fault = self.active.get_mut(index)?;
        let met = fault.clone();
        match &mut fault.times {
            None => {}
            Some(left) if *left > 1 => *left -= 1,
            Some(_) => {
                self.active.remove(index);
            }
        }
        Some(met)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_met_as_often_as_it_says_and_only_by_its_call_and_topic() {
        let mut faults = Faults::default();
        faults.add(
            Fault::error(Call::GetTopic, "service.unavailable")
                .times(2)
                .on_topic("/a"),
        );
        assert!(faults.at_call(Call::Publish, Some("/a")).is_none());
        assert!(faults.at_call(Call::GetTopic, Some("/b")).is_none());
        assert!(faults.at_call(Call::GetTopic, Some("/a")).is_some());
        assert!(faults.at_call(Call::GetTopic, Some("/a")).is_some());
        assert!(faults.at_call(Call::GetTopic, Some("/a")).is_none());
        faults.add(Fault::once(Call::GetSchema, FaultKind::Hang).until_cleared());
        for _ in 0..5 {
            assert!(faults.at_call(Call::GetSchema, None).is_some());
        }
        faults.clear();
        assert!(faults.at_call(Call::GetSchema, None).is_none());
    }

    #[test]
    fn a_stream_meets_a_fault_once_it_has_delivered_enough() {
        let mut faults = Faults::default();
        faults.add(Fault::once(Call::Subscribe, FaultKind::Reset).after_events(5));
        assert!(faults.at_call(Call::Subscribe, Some("/a")).is_none());
        assert_eq!(faults.events_left("/a", 2), Some(3));
        assert!(faults.in_stream("/a", 4).is_none());
        assert_eq!(
            faults.in_stream("/a", 5).map(|f| f.kind),
            Some(FaultKind::Reset)
        );
        assert_eq!(faults.events_left("/a", 2), None);
    }

    #[test]
    fn silence_meets_open_streams_at_once_and_event_faults_meet_single_events() {
        let mut faults = Faults::default();
        faults.add(Fault::once(Call::Subscribe, FaultKind::Silence));
        faults.add(Fault::once(Call::Subscribe, FaultKind::Duplicate));
        assert!(faults.at_call(Call::Subscribe, Some("/a")).is_none());
        assert!(faults.in_stream("/a", 0).is_some());
        assert_eq!(faults.on_event("/a", 0, false), None);
        assert_eq!(faults.on_event("/a", 0, true), Some(FaultKind::Duplicate));
        assert_eq!(faults.on_event("/a", 0, true), None);
    }

    #[test]
    fn faults_are_read_from_json_by_their_names() {
        let fault: Fault = serde_json::from_str(
            r#"{"rpc":"Subscribe","kind":"error","code":"service.unavailable","times":3,"after_events":2}"#,
        )
        .unwrap();
        assert_eq!(
            fault,
            Fault::error(Call::Subscribe, "service.unavailable")
                .times(3)
                .after_events(2)
        );
        assert!(serde_json::from_str::<Fault>(r#"{"rpc":"Subscribe","kind":"x"}"#).is_err());
    }
}
