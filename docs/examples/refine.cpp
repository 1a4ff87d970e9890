// Refine boxes in C++, without Python: a model of `lightning-bbox export --format aoti`.
//   torch=$(python -c 'import torch; print(torch.__path__[0])')
//   g++ -std=c++20 refine.cpp -o refine -I$torch/include -I$torch/include/torch/csrc/api/include \
//       -L$torch/lib -Wl,-rpath,$torch/lib -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10
//   ./refine model.pt2 picture.rgb WIDTH HEIGHT < boxes.txt
// The picture is raw RGB, a byte a channel; a line of boxes.txt is x1 y1 x2 y2 in pixel edges.
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

// The law's rows and columns, as the file tells them; none where the model has no law.
std::vector<int64_t> law_shape(const std::string& path) {
  caffe2::serialize::PyTorchStreamReader file(path);
  const auto [data, size] = file.getRecord("extra/lightning_bbox.json");
  const std::string told(static_cast<const char*>(data.get()), size), name = "\"law_shape\": ";
  long rows = 0, columns = 0;
  const char* at = told.c_str() + told.find(name) + name.size();
  if (std::sscanf(at, "[%ld, %ld]", &rows, &columns) != 2) return {};
  return {rows, columns};
}

int main(int count, char** words) try {
  if (count != 5) throw std::runtime_error("usage: refine model.pt2 picture.rgb WIDTH HEIGHT");
  const std::string path = words[1];
  const int64_t width = std::stol(words[3]), height = std::stol(words[4]);

  std::ifstream file(words[2], std::ios::binary);
  std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  if (static_cast<int64_t>(bytes.size()) != 3 * width * height)
    throw std::runtime_error("the picture hasn't WIDTH x HEIGHT x 3 bytes");
  const auto picture = torch::from_blob(bytes.data(), {height, width, 3}, torch::kUInt8);

  std::vector<float> edges{std::istream_iterator<float>(std::cin), {}};
  if (edges.size() % 4) throw std::runtime_error("a box has four edges");
  const auto boxes = torch::from_blob(edges.data(), {static_cast<int64_t>(edges.size()) / 4, 4});

  std::vector<at::Tensor> taken{picture, boxes};
  // NaN: the law of the model. One with a regressor for each class takes int64 classes before it.
  if (const auto shape = law_shape(path); !shape.empty())
    taken.push_back(torch::full(shape, NAN, torch::kFloat64));
  torch::inductor::AOTIModelPackageLoader model(path);
  const auto found = model.run(taken);  // refined, stds, gain, reason

  const auto refined = found[0].contiguous();
  for (int64_t row = 0; row < refined.size(0); ++row) {
    const float* box = refined.data_ptr<float>() + 4 * row;
    std::printf("%.9g %.9g %.9g %.9g\n", box[0], box[1], box[2], box[3]);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
