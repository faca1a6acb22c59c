! The C library from Fortran, by iso_c_binding. An array x(s, c, n) is C's x[n][c][s].
program normalize
  use, intrinsic :: iso_c_binding
  implicit none

  type, bind(c) :: bnnumba_params
    integer(c_size_t) :: struct_size
    integer(c_int) :: dtype
    type(c_ptr) :: weight, bias, running_mean, running_var
    real(c_double) :: momentum, eps, correction
    type(c_ptr) :: mean_rest
  end type

  interface
    integer(c_int) function forward_training(dtype, layout, n, c, s, x, params, y, saved) &
        bind(c, name="bnnumba_forward_training")
      import
      integer(c_int), value :: dtype, layout
      integer(c_int64_t), value :: n, c, s
      real(c_double), intent(in) :: x(*)
      type(bnnumba_params), intent(in) :: params
      real(c_double), intent(out) :: y(*)
      real(c_double), intent(out) :: saved(*)
    end function
  end interface

  integer(c_int), parameter :: float64 = 2, ncs = 1
  integer, parameter :: s = 10, c = 3, n = 4
  real(c_double) :: x(s, c, n), y(s, c, n), saved(c, 3), mean, variance
  real(c_double), target :: running_mean(c) = 0, running_var(c) = 1
  type(bnnumba_params) :: params
  integer :: channel

  call random_number(x)
  x = 5 * x + 100
  params = bnnumba_params(c_sizeof(params), float64, c_null_ptr, c_null_ptr, &
                          c_loc(running_mean), c_loc(running_var), 0.1d0, 1d-5, 1d0, &
                          c_null_ptr)
  if (forward_training(float64, ncs, int(n, c_int64_t), int(c, c_int64_t), int(s, c_int64_t), &
                       x, params, y, saved) /= 0) error stop "forward_training failed"

  do channel = 1, c
    mean = sum(x(:, channel, :)) / (n * s)
    variance = sum((x(:, channel, :) - mean)**2)
    if (abs(saved(channel, 1) - mean) > 1d-12 * mean) error stop "mean"
    if (abs(saved(channel, 2) - variance) > 1d-9 * variance) error stop "m2"
    if (abs(sum(y(:, channel, :))) > 1d-9) error stop "y"
    if (abs(running_mean(channel) - 0.1d0 * mean) > 1d-12 * mean) error stop "running mean"
  end do
  print "(a, 3f10.4)", "mean", saved(:, 1)
end program
