//! Avro: schemas compiled once to a decode plan, change-event bitmaps, and the schema cache.
