//! The account itself is put to the test: each broken promise, made by hand, has to be found.
