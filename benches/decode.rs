//! What decoding costs: the plan to JSON bytes, beside apache-avro to JSON text.
//!
//!     cargo bench --bench decode
//!
//! Each figure is the time of 1,000 events, one after the other on one thread.

#![allow(missing_docs, reason = "criterion's macros make items without any")]

use std::hint::black_box;

use apache_avro::reader::datum::GenericDatumReader;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use orgstream::avro::{Schema, peek_header};

#[path = "support/events.rs"]
mod events;

const EVENTS: usize = 1_000;

#[expect(clippy::expect_used, reason = "criterion has no way to fail")]
fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(EVENTS as u64));
    for kind in ["narrow", "update", "create", "mix", "own"] {
        let corpus = events::corpus(kind, EVENTS).expect("our own events");
        let plans: Vec<Schema> = corpus
            .schemas
            .iter()
            .map(|text| Schema::parse(text).expect("our own schema"))
            .collect();
        group.bench_function(BenchmarkId::new("plan to JSON bytes", kind), |bencher| {
            bencher.iter(|| {
                for (which, payload) in &corpus.payloads {
                    black_box(plans[*which].decode(payload).expect("our own event"));
                }
            });
        });
        let parsed: Vec<apache_avro::Schema> = corpus
            .schemas
            .iter()
            .map(|text| apache_avro::Schema::parse_str(text).expect("our own schema"))
            .collect();
        let readers: Vec<GenericDatumReader<'_>> = parsed
            .iter()
            .map(|schema| {
                let builder = GenericDatumReader::builder(schema);
                builder.build().expect("our own schema")
            })
            .collect();
        let read = |which: usize, mut payload: &[u8]| {
            readers[which]
                .read_value(&mut payload)
                .expect("our own event")
        };
        group.bench_function(BenchmarkId::new("apache-avro to Value", kind), |bencher| {
            bencher.iter(|| {
                for (which, payload) in &corpus.payloads {
                    black_box(read(*which, payload));
                }
            });
        });
        group.bench_function(
            BenchmarkId::new("apache-avro to JSON text", kind),
            |bencher| {
                bencher.iter(|| {
                    for (which, payload) in &corpus.payloads {
                        let value = read(*which, payload);
                        let json = serde_json::Value::try_from(value).expect("our own event");
                        black_box(json.to_string());
                    }
                });
            },
        );
        if !matches!(kind, "narrow" | "own") {
            group.bench_function(BenchmarkId::new("header only", kind), |bencher| {
                bencher.iter(|| {
                    for (_, payload) in &corpus.payloads {
                        black_box(peek_header(payload));
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
