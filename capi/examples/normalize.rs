//! The C library from Rust, with nothing but `extern "C"`.
//!
//!     rustc normalize.rs -L native=LIB -C link-arg=-Wl,-rpath,LIB && ./normalize
//!
//! where LIB is the directory of the library, `$(python -m bnnumba config --libdir)`.

use std::ffi::{c_char, c_int, c_void, CStr};
use std::ptr;

const FLOAT32: c_int = 1;
const CHANNELS_LAST: c_int = 2;

#[repr(C)]
struct Params {
    struct_size: usize,
    dtype: c_int,
    weight: *const c_void,
    bias: *const c_void,
    running_mean: *mut c_void,
    running_var: *mut c_void,
    momentum: f64,
    eps: f64,
    correction: f64,
}

#[link(name = "bnnumba")]
extern "C" {
    fn bnnumba_last_error() -> *const c_char;
    fn bnnumba_forward_training(
        dtype: c_int,
        layout: c_int,
        n: i64,
        c: i64,
        s: i64,
        x: *const c_void,
        params: *const Params,
        y_out: *mut c_void,
        saved_out: *mut f64,
    ) -> c_int;
}

/// Normalize the columns of a table by their own statistics, and move running statistics.
fn normalize(
    table: &[f32],
    running_mean: &mut [f32],
    running_var: &mut [f32],
) -> Result<Vec<f32>, String> {
    let columns = running_mean.len();
    assert!(columns > 0 && running_var.len() == columns && table.len() % columns == 0);
    let params = Params {
        struct_size: std::mem::size_of::<Params>(),
        dtype: FLOAT32,
        weight: ptr::null(),
        bias: ptr::null(),
        running_mean: running_mean.as_mut_ptr().cast(),
        running_var: running_var.as_mut_ptr().cast(),
        momentum: 0.1,
        eps: 1e-5,
        correction: 1.0,
    };
    let mut y = vec![0.0f32; table.len()];
    let status = unsafe {
        bnnumba_forward_training(
            FLOAT32,
            CHANNELS_LAST,
            (table.len() / columns) as i64,
            columns as i64,
            1,
            table.as_ptr().cast(),
            &params,
            y.as_mut_ptr().cast(),
            ptr::null_mut(),
        )
    };
    if status == 0 {
        return Ok(y);
    }
    let text = unsafe { CStr::from_ptr(bnnumba_last_error()) };
    Err(text.to_string_lossy().into_owned())
}

fn main() {
    let table = [1.0, 10.0, 3.0, 30.0, 5.0, 80.0];
    let (mut mean, mut var) = ([0.0; 2], [1.0; 2]);
    let y = normalize(&table, &mut mean, &mut var).expect("normalize");
    println!("normalized {:.4} {:.4} {:.4}", y[0], y[2], y[4]);
    println!("running mean {:.4} {:.4}", mean[0], mean[1]);
    assert!((y[4] - 1.5f32.sqrt()).abs() < 1e-5 && (mean[1] - 4.0).abs() < 1e-6);

    let error = normalize(&table[..2], &mut mean, &mut var).unwrap_err();
    println!("error: {error}");
    assert!(error.contains("correction"));
}
