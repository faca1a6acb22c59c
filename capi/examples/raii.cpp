// The C library from C++17: errors as exceptions, a handle that frees itself, containers as data.

#include <bnnumba.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <vector>

namespace bn {

inline void check(bnnumba_status status)
{
    if (status != BNNUMBA_OK)
        throw std::runtime_error(bnnumba_last_error());
}

// Moments of a stream of tables, by column.
class Running {
public:
    explicit Running(std::int64_t channels) : channels_(channels)
    {
        bnnumba_running *handle = nullptr;
        check(bnnumba_running_create(channels, &handle));
        handle_.reset(handle);
    }

    void update(const std::vector<float> &table)
    {
        const auto rows = static_cast<std::int64_t>(table.size()) / channels_;
        check(bnnumba_running_update(handle_.get(), BNNUMBA_FLOAT32, BNNUMBA_NSC, rows, channels_, 1,
                                     table.data()));
    }

    std::vector<double> variance(double correction = 0) const
    {
        std::int64_t count = 0;
        std::vector<double> var(static_cast<std::size_t>(channels_));
        check(bnnumba_running_read(handle_.get(), nullptr, &count, nullptr, var.data()));
        check(bnnumba_variance(channels_, count, var.data(), correction, var.data()));
        return var;
    }

private:
    struct Destroy {
        void operator()(bnnumba_running *handle) const { bnnumba_running_destroy(handle); }
    };
    std::int64_t channels_;
    std::unique_ptr<bnnumba_running, Destroy> handle_;
};

// Normalize a table by its own columns.
inline std::vector<float> normalize(const std::vector<float> &table, std::int64_t channels)
{
    std::vector<float> out(table.size());
    const auto rows = static_cast<std::int64_t>(table.size()) / channels;
    check(bnnumba_forward_training(BNNUMBA_FLOAT32, BNNUMBA_NSC, rows, channels, 1, table.data(),
                                   nullptr, out.data(), nullptr));
    return out;
}

} // namespace bn

int main()
{
    const std::vector<float> table = {1, 10, 3, 30, 5, 80};
    bn::Running running(2);
    running.update(table);
    running.update(table);
    std::printf("variance %.4f %.4f\n", running.variance()[0], running.variance()[1]);

    const std::vector<float> y = bn::normalize(table, 2);
    std::printf("normalized %.4f %.4f %.4f\n", y[0], y[2], y[4]);

    try {
        bn::Running wrong(-1);
        return 1;
    } catch (const std::runtime_error &error) {
        std::printf("error: %s\n", error.what());
    }
    return std::fabs(y[4] - std::sqrt(1.5f)) < 1e-5f ? 0 : 1;
}
